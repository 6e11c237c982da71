// Linear score, sigmoid and binary cross-entropy in one, for CUDA.
#include <cmath>

#include "common.cuh"

namespace fastadv {
namespace cuda {
namespace {

constexpr int kWarps = 4;
constexpr int kThreads = kWarps * kWarp;
constexpr int kSumThreads = 256;
constexpr int kGradRows = 8;
// Rows that one block of the weight gradient adds up: fixed, so that the order of the sum is fixed.
constexpr int64_t kRowsPerChunk = 512;

// The whole block adds up its threads' values, always in the same order.
template <typename Acc, int THREADS>
__device__ Acc block_sum(Acc value) {
  __shared__ Acc sums[THREADS / kWarp];
  value = warp_sum(value);
  if (threadIdx.x % kWarp == 0) sums[threadIdx.x / kWarp] = value;
  __syncthreads();
  value = 0;
#pragma unroll
  for (int w = 0; w < THREADS / kWarp; ++w) value += sums[w];
  return value;
}

// With e = exp(-|z|) nothing overflows, and neither side loses its small values to the other.
template <typename Acc>
__device__ __forceinline__ void bce(Acc z, Acc y, Acc c, Acc* loss, Acc* dz) {
  const Acc magnitude = z >= 0 ? z : -z;
  const Acc e = exp(-magnitude);
  const Acc large = 1 / (1 + e), small = e / (1 + e);
  const Acc positive = z >= 0 ? large : small, negative = z >= 0 ? small : large;
  *loss = c * ((z > 0 ? z - y * z : -y * z) + log1p(e));
  *dz = c * ((1 - y) * positive - y * negative);
}

// The same for p = bound * sigmoid(z) with bound <= 1 / 2, from where log1p(-p) is as good as p;
// log_bound = log(bound). Both derivatives have the factor sigmoid(-z).
template <typename Acc>
__device__ __forceinline__ void relaxed_bce(Acc z, Acc y, Acc c, Acc bound, Acc log_bound,
                                            Acc* loss, Acc* dz) {
  const Acc magnitude = z >= 0 ? z : -z;
  const Acc e = exp(-magnitude);
  const Acc large = 1 / (1 + e), small = e / (1 + e);
  const Acc positive = z >= 0 ? large : small, negative = z >= 0 ? small : large;
  const Acc p = bound * positive;
  const Acc minus_log_p = (z < 0 ? -z : 0) + log1p(e) - log_bound;
  *loss = c * (y * minus_log_p - (1 - y) * log1p(-p));
  *dz = c * negative * ((1 - y) * (p / (1 - p)) - y);
}

// One warp: one row. Without relaxation bound is 1.
template <typename T, int V>
__global__ void __launch_bounds__(kThreads)
    loss_kernel(const T* __restrict__ h, const acc_t<T>* __restrict__ weight,
                const acc_t<T>* __restrict__ bias, const acc_t<T>* __restrict__ targets,
                const acc_t<T>* __restrict__ sample_weights, acc_t<T> bound, acc_t<T> log_bound,
                int64_t rows, int64_t hidden, acc_t<T>* __restrict__ losses,
                acc_t<T>* __restrict__ logits, acc_t<T>* __restrict__ dz) {
  using Acc = acc_t<T>;
  const int lane = threadIdx.x % kWarp;
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / kWarp;
  if (i >= rows) return;
  Acc sum = 0;
#pragma unroll 4
  for (int64_t column = lane * V; column < hidden; column += kWarp * V) {
    const auto x = *reinterpret_cast<const Vec<T, V>*>(h + i * hidden + column);
#pragma unroll
    for (int v = 0; v < V; ++v) sum += widen(x.at[v]) * weight[column + v];
  }
  const Acc z = warp_sum(sum) + *bias;
  if (lane == 0) {
    const Acc c = sample_weights != nullptr ? sample_weights[i] : Acc(1) / static_cast<Acc>(rows);
    logits[i] = z;
    if (bound == 1) {
      bce(z, targets[i], c, losses + i, dz + i);
    } else {
      relaxed_bce(z, targets[i], c, bound, log_bound, losses + i, dz + i);
    }
  }
}

template <typename Acc>
__global__ void __launch_bounds__(kSumThreads)
    sum_kernel(const Acc* __restrict__ values, int64_t count, Acc* __restrict__ total) {
  Acc sum = 0;
  for (int64_t i = threadIdx.x; i < count; i += kSumThreads) sum += values[i];
  sum = block_sum<Acc, kSumThreads>(sum);
  if (threadIdx.x == 0) *total = sum;
}

// One block: kGradRows rows.
template <typename T, int V>
__global__ void __launch_bounds__(kThreads)
    grad_input_kernel(const acc_t<T>* __restrict__ grad, const acc_t<T>* __restrict__ dz,
                      const acc_t<T>* __restrict__ weight, int64_t rows, int64_t hidden,
                      T* __restrict__ grad_h) {
  using Acc = acc_t<T>;
  const int64_t first = static_cast<int64_t>(blockIdx.x) * kGradRows;
  const int64_t last = first + kGradRows < rows ? first + kGradRows : rows;
  for (int64_t column = static_cast<int64_t>(threadIdx.x) * V; column < hidden;
       column += kThreads * V) {
    Acc w[V];
#pragma unroll
    for (int v = 0; v < V; ++v) w[v] = weight[column + v];
    for (int64_t i = first; i < last; ++i) {
      const Acc scale = *grad * dz[i];
      Vec<T, V> value;
#pragma unroll
      for (int v = 0; v < V; ++v) narrow(scale * w[v], value.at + v);
      *reinterpret_cast<Vec<T, V>*>(grad_h + i * hidden + column) = value;
    }
  }
}

// One block: kWarp columns and a chunk of the rows, which are divided among its warps.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    grad_weight_kernel(const acc_t<T>* __restrict__ grad, const acc_t<T>* __restrict__ dz,
                       const T* __restrict__ h, int64_t rows, int64_t hidden,
                       acc_t<T>* __restrict__ partial) {
  using Acc = acc_t<T>;
  __shared__ Acc sums[kWarps][kWarp];
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int64_t column = static_cast<int64_t>(blockIdx.x) * kWarp + lane;
  const int64_t first = static_cast<int64_t>(blockIdx.y) * kRowsPerChunk;
  const int64_t last = first + kRowsPerChunk < rows ? first + kRowsPerChunk : rows;
  Acc sum = 0;
  if (column < hidden) {
#pragma unroll 8
    for (int64_t i = first + warp; i < last; i += kWarps) {
      sum += dz[i] * widen(h[i * hidden + column]);
    }
  }
  sums[warp][lane] = sum;
  __syncthreads();
  if (warp == 0 && column < hidden) {
    Acc total = 0;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) total += sums[w][lane];
    partial[blockIdx.y * hidden + column] = total * *grad;
  }
}

template <typename Acc>
__global__ void __launch_bounds__(kThreads)
    add_chunks_kernel(const Acc* __restrict__ partial, int64_t chunks, int64_t hidden,
                      Acc* __restrict__ total) {
  const int64_t column = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (column >= hidden) return;
  Acc sum = 0;
  for (int64_t chunk = 0; chunk < chunks; ++chunk) sum += partial[chunk * hidden + column];
  total[column] = sum;
}

template <typename Acc>
__global__ void __launch_bounds__(kSumThreads)
    grad_bias_kernel(const Acc* __restrict__ grad, const Acc* __restrict__ dz, int64_t rows,
                     Acc* __restrict__ grad_bias) {
  Acc sum = 0;
  for (int64_t i = threadIdx.x; i < rows; i += kSumThreads) sum += dz[i];
  sum = block_sum<Acc, kSumThreads>(sum);
  if (threadIdx.x == 0) *grad_bias = sum * *grad;
}

unsigned blocks_for(int64_t count, int64_t each) {
  return static_cast<unsigned>(ceil_div<int64_t>(count, each));
}

}  // namespace

// Number of partial weight gradients (chunks, hidden) that bce_grad_params needs room for.
int64_t grad_chunks(int64_t rows) { return ceil_div<int64_t>(rows > 0 ? rows : 1, kRowsPerChunk); }

template <typename T>
void bce_forward(const T* h, const acc_t<T>* weight, const acc_t<T>* bias, const acc_t<T>* targets,
                 const acc_t<T>* sample_weights, double relaxation, int64_t rows, int64_t hidden,
                 acc_t<T>* losses, acc_t<T>* loss, acc_t<T>* logits, acc_t<T>* dz,
                 cudaStream_t stream) {
  constexpr int V = kVector<T>;
  const auto bound = static_cast<acc_t<T>>(relaxation == 0 ? 1 : 1 / (2 + relaxation));
  const auto log_bound = static_cast<acc_t<T>>(-std::log(2 + relaxation));
  if (rows > 0) {
    const auto blocks = blocks_for(rows, kWarps);
    if (hidden % V == 0 && aligned16(h)) {
      loss_kernel<T, V><<<blocks, kThreads, 0, stream>>>(h, weight, bias, targets, sample_weights,
                                                         bound, log_bound, rows, hidden, losses,
                                                         logits, dz);
    } else {
      loss_kernel<T, 1><<<blocks, kThreads, 0, stream>>>(h, weight, bias, targets, sample_weights,
                                                         bound, log_bound, rows, hidden, losses,
                                                         logits, dz);
    }
  }
  sum_kernel<<<1, kSumThreads, 0, stream>>>(losses, rows, loss);
}

template <typename T>
void bce_grad_input(const acc_t<T>* grad, const acc_t<T>* dz, const acc_t<T>* weight, int64_t rows,
                    int64_t hidden, T* grad_h, cudaStream_t stream) {
  constexpr int V = kVector<T>;
  const auto blocks = blocks_for(rows, kGradRows);
  if (hidden % V == 0 && aligned16(grad_h)) {
    grad_input_kernel<T, V>
        <<<blocks, kThreads, 0, stream>>>(grad, dz, weight, rows, hidden, grad_h);
  } else {
    grad_input_kernel<T, 1>
        <<<blocks, kThreads, 0, stream>>>(grad, dz, weight, rows, hidden, grad_h);
  }
}

// `partial` is (grad_chunks(rows), hidden), or null where there is one chunk.
template <typename T>
void bce_grad_params(const acc_t<T>* grad, const acc_t<T>* dz, const T* h, int64_t rows,
                     int64_t hidden, acc_t<T>* partial, acc_t<T>* grad_weight, acc_t<T>* grad_bias,
                     cudaStream_t stream) {
  if (hidden > 0) {
    const int64_t chunks = grad_chunks(rows);
    const dim3 grid(blocks_for(hidden, kWarp), static_cast<unsigned>(chunks));
    grad_weight_kernel<T><<<grid, kThreads, 0, stream>>>(
        grad, dz, h, rows, hidden, partial != nullptr ? partial : grad_weight);
    if (partial != nullptr) {
      add_chunks_kernel<<<blocks_for(hidden, kThreads), kThreads, 0, stream>>>(partial, chunks,
                                                                               hidden, grad_weight);
    }
  }
  grad_bias_kernel<<<1, kSumThreads, 0, stream>>>(grad, dz, rows, grad_bias);
}

#define FASTADV_INSTANTIATE(T)                                                                   \
  template void bce_forward<T>(const T*, const acc_t<T>*, const acc_t<T>*, const acc_t<T>*,      \
                               const acc_t<T>*, double, int64_t, int64_t, acc_t<T>*, acc_t<T>*,  \
                               acc_t<T>*, acc_t<T>*, cudaStream_t);                              \
  template void bce_grad_input<T>(const acc_t<T>*, const acc_t<T>*, const acc_t<T>*, int64_t,    \
                                  int64_t, T*, cudaStream_t);                                    \
  template void bce_grad_params<T>(const acc_t<T>*, const acc_t<T>*, const T*, int64_t, int64_t, \
                                   acc_t<T>*, acc_t<T>*, acc_t<T>*, cudaStream_t);
FASTADV_INSTANTIATE(float)
FASTADV_INSTANTIATE(double)
FASTADV_INSTANTIATE(__half)
FASTADV_INSTANTIATE(__nv_bfloat16)

}  // namespace cuda
}  // namespace fastadv

#if !defined(__CUDA_ARCH__)

namespace fastadv {
namespace {

std::tuple<at::Tensor, at::Tensor, at::Tensor> linear_bce_cuda(
    const at::Tensor& h_in, const at::Tensor& weight_in, const at::Tensor& bias,
    const at::Tensor& targets_in, const std::optional<at::Tensor>& sample_weights_in,
    double relaxation) {
  check_float(h_in, "h");
  TORCH_CHECK_VALUE(h_in.dim() == 2, "h has ", h_in.dim(), " dimensions, expected 2");
  check_linear_bce(h_in, weight_in, bias, targets_in, sample_weights_in, relaxation);
  const int64_t rows = h_in.size(0), hidden = h_in.size(1);
  const c10::cuda::CUDAGuard guard(h_in.device());
  const at::Tensor h = h_in.contiguous(), weight = weight_in.contiguous();
  const at::Tensor targets = targets_in.contiguous();
  const auto sample_weights = contiguous(sample_weights_in);
  at::Tensor loss = at::empty({}, weight.options()), losses = at::empty({rows}, weight.options());
  at::Tensor logits = at::empty({rows}, weight.options()), dz = at::empty({rows}, weight.options());
  cuda::dispatch(h.scalar_type(), "linear_bce", [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    using Acc = acc_t<T>;
    cuda::bce_forward<T>(cuda::data<T>(h), cuda::data<Acc>(weight), cuda::data<Acc>(bias),
                         cuda::data<Acc>(targets), data_or_null<Acc>(sample_weights), relaxation,
                         rows, hidden, cuda::mutable_data<Acc>(losses),
                         cuda::mutable_data<Acc>(loss), cuda::mutable_data<Acc>(logits),
                         cuda::mutable_data<Acc>(dz), c10::cuda::getCurrentCUDAStream());
  });
  C10_CUDA_KERNEL_LAUNCH_CHECK();
  return {loss, logits, dz};
}

at::Tensor linear_bce_grad_input_cuda(const at::Tensor& grad, const at::Tensor& dz_in,
                                      const at::Tensor& weight_in, at::ScalarType dtype) {
  check_linear_bce_grad(grad, dz_in, dtype);
  TORCH_CHECK_VALUE(weight_in.dim() == 1, "weight has ", weight_in.dim(),
                    " dimensions, expected 1");
  check_dtype(weight_in, acc_dtype(dtype), "weight");
  check_device(weight_in, dz_in, "weight");
  const c10::cuda::CUDAGuard guard(dz_in.device());
  const at::Tensor dz = dz_in.contiguous(), weight = weight_in.contiguous();
  const int64_t rows = dz.size(0), hidden = weight.size(0);
  at::Tensor grad_h = at::empty({rows, hidden}, weight.options().dtype(dtype));
  if (grad_h.numel() == 0) return grad_h;
  cuda::dispatch(dtype, "linear_bce_grad_input", [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    using Acc = acc_t<T>;
    cuda::bce_grad_input<T>(cuda::data<Acc>(grad), cuda::data<Acc>(dz), cuda::data<Acc>(weight),
                            rows, hidden, cuda::mutable_data<T>(grad_h),
                            c10::cuda::getCurrentCUDAStream());
  });
  C10_CUDA_KERNEL_LAUNCH_CHECK();
  return grad_h;
}

std::tuple<at::Tensor, at::Tensor> linear_bce_grad_params_cuda(const at::Tensor& grad,
                                                               const at::Tensor& dz_in,
                                                               const at::Tensor& h_in) {
  check_float(h_in, "h");
  check_linear_bce_grad(grad, dz_in, h_in.scalar_type());
  TORCH_CHECK_VALUE(h_in.dim() == 2, "h has ", h_in.dim(), " dimensions, expected 2");
  check_device(h_in, dz_in, "h");
  const int64_t rows = h_in.size(0), hidden = h_in.size(1);
  check_shape(dz_in, {rows}, "dz");
  const c10::cuda::CUDAGuard guard(h_in.device());
  const at::Tensor dz = dz_in.contiguous(), h = h_in.contiguous();
  at::Tensor grad_weight = at::empty({hidden}, dz.options());
  at::Tensor grad_bias = at::empty({1}, dz.options());
  const int64_t chunks = cuda::grad_chunks(rows);
  std::optional<at::Tensor> partial;
  if (chunks > 1) partial = at::empty({chunks, hidden}, dz.options());
  cuda::dispatch(h.scalar_type(), "linear_bce_grad_params", [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    using Acc = acc_t<T>;
    cuda::bce_grad_params<T>(cuda::data<Acc>(grad), cuda::data<Acc>(dz), cuda::data<T>(h), rows,
                             hidden,
                             partial.has_value() ? cuda::mutable_data<Acc>(*partial) : nullptr,
                             cuda::mutable_data<Acc>(grad_weight),
                             cuda::mutable_data<Acc>(grad_bias), c10::cuda::getCurrentCUDAStream());
  });
  C10_CUDA_KERNEL_LAUNCH_CHECK();
  return {grad_weight, grad_bias};
}

}  // namespace
}  // namespace fastadv

TORCH_LIBRARY_IMPL(fastadv, CUDA, m) {
  m.impl("linear_bce", &fastadv::linear_bce_cuda);
  m.impl("linear_bce_grad_input", &fastadv::linear_bce_grad_input_cuda);
  m.impl("linear_bce_grad_params", &fastadv::linear_bce_grad_params_cuda);
}

#endif
