// Matrix products by ATen that have the same bits on any number of threads.
//
// A BLAS library shares one product out as it likes: MKL, on Intel's processors, splits the sum
// over the depth where it may use several threads, be it that it gets only one. So each call here
// is made by one thread that tells MKL so, and what a thread gets is cut by the shapes alone.
#pragma once

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>

#include <algorithm>
#include <cstdint>

namespace fastadv {

// While it lives, MKL takes one thread for calls of this thread; other libraries do so by
// themselves inside a parallel region.
class SerialBlas {
 public:
  SerialBlas();
  ~SerialBlas();
  SerialBlas(const SerialBlas&) = delete;
  SerialBlas& operator=(const SerialBlas&) = delete;

 private:
  int before_ = 0;
};

// work(first, last) over [0, tasks), where a call into the BLAS library stays on its thread.
template <typename Work>
void serial_blas_for(int64_t tasks, const Work& work) {
  // parallel_for runs a single task outside of any parallel region; with a second one, which does
  // nothing, it makes one.
  at::parallel_for(0, std::max<int64_t>(tasks, 2), 1, [&](int64_t first, int64_t last) {
    const SerialBlas serial;
    if (first < std::min(last, tasks)) work(first, std::min(last, tasks));
  });
}

// out (M, N) = a (M, K) b (K, N), all of one type, float32 or float64, strided as they may be.
void serial_matmul(const at::Tensor& a, const at::Tensor& b, const at::Tensor& out);

// y (T, N) = x (T, K) weight (N, K)^T + bias (N,), of which x, weight and y are of one type and
// bias of that of its sums; each element of y is rounded once.
void serial_linear(const at::Tensor& x, const at::Tensor& weight,
                   const std::optional<at::Tensor>& bias, const at::Tensor& y);

}  // namespace fastadv
