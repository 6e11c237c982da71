// The type that sums are kept in, and that results have: float, for double double.
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
