// The type of sums and of their results: double for double, float for every other type.
#pragma once

namespace fastadv {

template <typename T>
struct AccType {
  using type = float;
};
template <>
struct AccType<double> {
  using type = double;
};
template <typename T>
using acc_t = typename AccType<T>::type;

}  // namespace fastadv
