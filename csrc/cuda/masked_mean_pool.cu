// Mean over the counted rows of each sequence, for CUDA.
#include "common.cuh"

namespace fastadv {
namespace cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kUnroll = 4;
constexpr int kTileRows = 16;

struct Segments {
  const int32_t* cu_seqlens;  // or null: equal lengths
  int64_t length;
  int64_t tokens;

  // The host does not know the offsets, so a wrong one is clamped to the rows there are.
  __device__ __forceinline__ int64_t offset(int64_t b) const {
    if (cu_seqlens == nullptr) return b * length;
    const int64_t at = cu_seqlens[b];
    return at < 0 ? 0 : (at > tokens ? tokens : at);
  }

  // The first sequence that ends after row t; `batch` if there is none.
  __device__ __forceinline__ int64_t find(int64_t t, int64_t batch) const {
    if (cu_seqlens == nullptr) return t / length;
    int64_t low = 0, high = batch;
    while (low < high) {
      const int64_t middle = (low + high) / 2;
      if (cu_seqlens[middle + 1] <= t) {
        low = middle + 1;
      } else {
        high = middle;
      }
    }
    return low;
  }
};

// One block: one sequence, LANES * V columns; kThreads / LANES groups divide the rows, each with
// kUnroll loads in flight. Group sums are added in a fixed order: no atomics, same bits every time.
template <typename T, int V, int LANES>
__global__ void __launch_bounds__(kThreads)
    mean_kernel(const T* __restrict__ x, Segments segments, const bool* __restrict__ mask,
                int64_t hidden, acc_t<T>* __restrict__ mean, acc_t<T>* __restrict__ counts) {
  using Acc = acc_t<T>;
  constexpr int kGroups = kThreads / LANES;
  __shared__ Acc sums[kGroups][LANES * V];
  __shared__ int counted[kGroups];

  const int64_t b = blockIdx.x;
  const int lane = threadIdx.x % LANES, group = threadIdx.x / LANES;
  const int64_t column = (static_cast<int64_t>(blockIdx.y) * LANES + lane) * V;
  const int64_t begin = segments.offset(b), end = segments.offset(b + 1);

  Acc sum[V];
#pragma unroll
  for (int v = 0; v < V; ++v) sum[v] = 0;
  int count = 0;
  for (int64_t row = begin + group; row < end; row += kGroups * kUnroll) {
    Vec<T, V> loaded[kUnroll];
    bool keep[kUnroll];
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      const int64_t t = row + u * kGroups;
      keep[u] = t < end && (mask == nullptr || mask[t]);
      if (keep[u] && column < hidden) {
        loaded[u] = *reinterpret_cast<const Vec<T, V>*>(x + t * hidden + column);
      }
    }
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      if (!keep[u]) continue;
      ++count;
      if (column >= hidden) continue;
#pragma unroll
      for (int v = 0; v < V; ++v) sum[v] += widen(loaded[u].at[v]);
    }
  }
#pragma unroll
  for (int v = 0; v < V; ++v) sums[group][lane * V + v] = sum[v];
  if (lane == 0) counted[group] = count;
  __syncthreads();

  int total = 0;
  for (int g = 0; g < kGroups; ++g) total += counted[g];
  const int64_t first = static_cast<int64_t>(blockIdx.y) * LANES * V;
  for (int j = threadIdx.x; j < LANES * V && first + j < hidden; j += kThreads) {
    Acc value = 0;
#pragma unroll
    for (int g = 0; g < kGroups; ++g) value += sums[g][j];
    mean[b * hidden + first + j] = total > 0 ? value / static_cast<Acc>(total) : Acc(0);
  }
  if (blockIdx.y == 0 && threadIdx.x == 0) counts[b] = static_cast<Acc>(total);
}

// One block: kTileRows rows. Their sequences are looked up once, in parallel; then every row is
// written, whatever the offsets say.
template <typename T, int V>
__global__ void __launch_bounds__(kThreads)
    grad_kernel(const acc_t<T>* __restrict__ grad, const acc_t<T>* __restrict__ counts,
                Segments segments, const bool* __restrict__ mask, int64_t batch, int64_t hidden,
                T* __restrict__ grad_x) {
  using Acc = acc_t<T>;
  __shared__ int64_t sequence[kTileRows];
  __shared__ Acc divisor[kTileRows];
  const int64_t first = static_cast<int64_t>(blockIdx.x) * kTileRows;
  const int64_t left = segments.tokens - first;
  const int rows = left < kTileRows ? static_cast<int>(left) : kTileRows;
  if (threadIdx.x < rows) {
    const int64_t t = first + threadIdx.x;
    const int64_t b = segments.find(t, batch);
    const bool keep = b < batch && (mask == nullptr || mask[t]);
    sequence[threadIdx.x] = keep ? b : -1;
    divisor[threadIdx.x] = keep ? counts[b] : Acc(1);
  }
  __syncthreads();
  for (int64_t column = static_cast<int64_t>(threadIdx.x) * V; column < hidden;
       column += static_cast<int64_t>(blockDim.x) * V) {
    int64_t held = -1;
    Vec<T, V> value;
    for (int r = 0; r < rows; ++r) {
      const int64_t b = sequence[r];
      if (r == 0 || b != held) {
        held = b;
#pragma unroll
        for (int v = 0; v < V; ++v) {
          narrow(b < 0 ? Acc(0) : grad[b * hidden + column + v] / divisor[r], value.at + v);
        }
      }
      *reinterpret_cast<Vec<T, V>*>(grad_x + (first + r) * hidden + column) = value;
    }
  }
}

template <typename T, int V, int LANES>
void launch_mean(const T* x, const Segments& segments, const bool* mask, int64_t batch,
                 int64_t hidden, acc_t<T>* mean, acc_t<T>* counts, cudaStream_t stream) {
  const dim3 grid(static_cast<unsigned>(batch),
                  static_cast<unsigned>(ceil_div<int64_t>(hidden > 0 ? hidden : 1, LANES * V)));
  mean_kernel<T, V, LANES><<<grid, kThreads, 0, stream>>>(x, segments, mask, hidden, mean, counts);
}

}  // namespace

// x (tokens, hidden) -> mean (batch, hidden), counts (batch,).
template <typename T>
void mean_forward(const T* x, const int32_t* cu_seqlens, const bool* mask, int64_t batch,
                  int64_t tokens, int64_t hidden, acc_t<T>* mean, acc_t<T>* counts,
                  cudaStream_t stream) {
  const Segments segments{cu_seqlens, tokens / batch, tokens};
  constexpr int V = kVector<T>;
  if (hidden % V != 0 || !aligned16(x)) {
    return launch_mean<T, 1, kWarp>(x, segments, mask, batch, hidden, mean, counts, stream);
  }
  // Narrow blocks where wide ones would leave most of a GPU's 100 to 150 multiprocessors idle.
  // The sizes alone decide, so the same input gives the same bits on every GPU.
  if (batch * ceil_div<int64_t>(hidden, kWarp * V) < 256) {
    return launch_mean<T, V, 8>(x, segments, mask, batch, hidden, mean, counts, stream);
  }
  launch_mean<T, V, kWarp>(x, segments, mask, batch, hidden, mean, counts, stream);
}

// grad (batch, hidden), counts (batch,) -> grad_x (tokens, hidden).
template <typename T>
void mean_backward(const acc_t<T>* grad, const acc_t<T>* counts, const int32_t* cu_seqlens,
                   const bool* mask, int64_t batch, int64_t tokens, int64_t hidden, T* grad_x,
                   cudaStream_t stream) {
  const Segments segments{cu_seqlens, batch > 0 ? tokens / batch : 1, tokens};
  const auto blocks = static_cast<unsigned>(ceil_div<int64_t>(tokens, kTileRows));
  constexpr int V = kVector<T>;
  const bool wide = hidden % V == 0 && aligned16(grad_x);
  const int64_t wanted = ceil_div<int64_t>(wide ? hidden / V : hidden, kWarp) * kWarp;
  const auto threads = static_cast<unsigned>(wanted < kThreads ? wanted : kThreads);
  if (wide) {
    grad_kernel<T, V>
        <<<blocks, threads, 0, stream>>>(grad, counts, segments, mask, batch, hidden, grad_x);
  } else {
    grad_kernel<T, 1>
        <<<blocks, threads, 0, stream>>>(grad, counts, segments, mask, batch, hidden, grad_x);
  }
}

#define FASTADV_INSTANTIATE(T)                                                                    \
  template void mean_forward<T>(const T*, const int32_t*, const bool*, int64_t, int64_t, int64_t, \
                                acc_t<T>*, acc_t<T>*, cudaStream_t);                              \
  template void mean_backward<T>(const acc_t<T>*, const acc_t<T>*, const int32_t*, const bool*,   \
                                 int64_t, int64_t, int64_t, T*, cudaStream_t);
FASTADV_INSTANTIATE(float)
FASTADV_INSTANTIATE(double)
FASTADV_INSTANTIATE(__half)
FASTADV_INSTANTIATE(__nv_bfloat16)

}  // namespace cuda
}  // namespace fastadv

#if !defined(__CUDA_ARCH__)

namespace fastadv {
namespace {

std::tuple<at::Tensor, at::Tensor> masked_mean_pool_cuda(const at::Tensor& x_in,
                                                         const std::optional<at::Tensor>& cu_in,
                                                         const std::optional<at::Tensor>& mask_in,
                                                         int64_t batch) {
  check_float(x_in, "x");
  TORCH_CHECK_VALUE(x_in.dim() == 2, "x has ", x_in.dim(), " dimensions, expected 2");
  const int64_t tokens = x_in.size(0), hidden = x_in.size(1);
  check_segments(x_in, cu_in, mask_in, batch, tokens);
  const c10::cuda::CUDAGuard guard(x_in.device());
  const at::Tensor x = x_in.contiguous();
  const auto cu_seqlens = contiguous(cu_in), mask = contiguous(mask_in);
  const auto options = x.options().dtype(acc_dtype(x.scalar_type()));
  at::Tensor mean = at::empty({batch, hidden}, options);
  at::Tensor counts = at::empty({batch}, options);
  if (batch == 0) return {mean, counts};
  cuda::dispatch(x.scalar_type(), "masked_mean_pool", [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    using Acc = acc_t<T>;
    cuda::mean_forward<T>(cuda::data<T>(x), data_or_null<int32_t>(cu_seqlens),
                          data_or_null<bool>(mask), batch, tokens, hidden,
                          cuda::mutable_data<Acc>(mean), cuda::mutable_data<Acc>(counts),
                          c10::cuda::getCurrentCUDAStream());
  });
  C10_CUDA_KERNEL_LAUNCH_CHECK();
  return {mean, counts};
}

at::Tensor masked_mean_pool_backward_cuda(const at::Tensor& grad_in, const at::Tensor& counts_in,
                                          const std::optional<at::Tensor>& cu_in,
                                          const std::optional<at::Tensor>& mask_in, int64_t tokens,
                                          at::ScalarType dtype) {
  TORCH_CHECK_VALUE(grad_in.dim() == 2, "grad has ", grad_in.dim(), " dimensions, expected 2");
  const int64_t batch = grad_in.size(0), hidden = grad_in.size(1);
  check_dtype(grad_in, acc_dtype(dtype), "grad");
  check_dtype(counts_in, acc_dtype(dtype), "counts");
  check_shape(counts_in, {batch}, "counts");
  check_device(counts_in, grad_in, "counts");
  check_segments(grad_in, cu_in, mask_in, batch, tokens);
  const c10::cuda::CUDAGuard guard(grad_in.device());
  const at::Tensor grad = grad_in.contiguous(), counts = counts_in.contiguous();
  const auto cu_seqlens = contiguous(cu_in), mask = contiguous(mask_in);
  at::Tensor grad_x = at::empty({tokens, hidden}, grad.options().dtype(dtype));
  if (grad_x.numel() == 0) return grad_x;
  cuda::dispatch(dtype, "masked_mean_pool_backward", [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    using Acc = acc_t<T>;
    cuda::mean_backward<T>(cuda::data<Acc>(grad), cuda::data<Acc>(counts),
                           data_or_null<int32_t>(cu_seqlens), data_or_null<bool>(mask), batch,
                           tokens, hidden, cuda::mutable_data<T>(grad_x),
                           c10::cuda::getCurrentCUDAStream());
  });
  C10_CUDA_KERNEL_LAUNCH_CHECK();
  return grad_x;
}

}  // namespace
}  // namespace fastadv

TORCH_LIBRARY_IMPL(fastadv, CUDA, m) {
  m.impl("masked_mean_pool", &fastadv::masked_mean_pool_cuda);
  m.impl("masked_mean_pool_backward", &fastadv::masked_mean_pool_backward_cuda);
}

#endif
