// Matrix products by ATen that have the same bits on any number of threads.
//
// A BLAS library divides a matrix product among threads as it likes: on Intel's processors, MKL
// splits the sum over the depth where it may use several threads, even if it gets only one. So each
// call here is made by one thread, which tells MKL so, and the shapes alone decide what each thread
// computes.
#pragma once

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/core/grad_mode.h>
#include <c10/core/InferenceMode.h>

#include <algorithm>
#include <cstdint>

namespace fastadv {

// While it exists, MKL uses one thread for calls of this thread; other libraries do so by
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

// Runs work(first, last) over [0, tasks) so that a call into the BLAS library stays on its thread.
// Work may call PyTorch's operations: without gradients, and in the caller's inference mode,
// neither of which a thread of the pool inherits.
template <typename Work>
void serial_blas_for(int64_t tasks, const Work& work) {
  // parallel_for runs a single task outside of any parallel region; a second task, which does
  // nothing, makes it open one.
  const bool inference = c10::InferenceMode::is_enabled();
  at::parallel_for(0, std::max<int64_t>(tasks, 2), 1, [&](int64_t first, int64_t last) {
    const SerialBlas serial;
    const c10::InferenceMode mode(inference);
    const at::NoGradGuard no_grad;
    if (first < std::min(last, tasks)) work(first, std::min(last, tasks));
  });
}

// out (M, N) = a (M, K) b (K, N), all of one type, float32 or float64, with any strides.
void serial_matmul(const at::Tensor& a, const at::Tensor& b, const at::Tensor& out);

// y (T, N) = x (T, K) weight (N, K)^T + bias (N,). x, weight and y have one type, bias the type of
// its sums; each element of y is rounded once.
void serial_linear(const at::Tensor& x, const at::Tensor& weight,
                   const std::optional<at::Tensor>& bias, const at::Tensor& y);

}  // namespace fastadv
