// Mean over the counted rows of each sequence: schema and CPU kernels.
#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <tuple>
#include <vector>

#include "common.h"
#include "cpu/simd.h"

namespace fastadv {
namespace {

// A task smaller than this costs more to hand to a thread than to do.
constexpr int64_t kElementsPerTask = 32768;
constexpr int kRows = 8;

struct Segments {
  const int32_t* cu_seqlens;
  int64_t length;

  int64_t begin(int64_t b) const { return cu_seqlens ? cu_seqlens[b] : b * length; }
  int64_t end(int64_t b) const { return cu_seqlens ? cu_seqlens[b + 1] : (b + 1) * length; }
};

// Offsets are read on the host here, so that a wrong one is an error and not a stray read.
void check_offsets(const int32_t* cu_seqlens, int64_t batch, int64_t tokens) {
  if (cu_seqlens == nullptr) return;
  TORCH_CHECK_VALUE(cu_seqlens[0] == 0, "cu_seqlens starts with ", cu_seqlens[0], ", expected 0");
  for (int64_t b = 0; b < batch; ++b) {
    TORCH_CHECK_VALUE(cu_seqlens[b] <= cu_seqlens[b + 1], "cu_seqlens falls from ", cu_seqlens[b],
                      " to ", cu_seqlens[b + 1], ", expected offsets that never fall");
  }
  TORCH_CHECK_VALUE(cu_seqlens[batch] <= tokens, "cu_seqlens ends with ", cu_seqlens[batch],
                    ", expected at most the number of rows, ", tokens);
}

template <typename T, typename Acc>
FASTADV_INLINE void add_8_rows_body(const T* const* rows, int64_t width, Acc* sum) {
  const T *r0 = rows[0], *r1 = rows[1], *r2 = rows[2], *r3 = rows[3];
  const T *r4 = rows[4], *r5 = rows[5], *r6 = rows[6], *r7 = rows[7];
#pragma omp simd
  for (int64_t j = 0; j < width; ++j) {
    const Acc low = (widen(r0[j]) + widen(r1[j])) + (widen(r2[j]) + widen(r3[j]));
    const Acc high = (widen(r4[j]) + widen(r5[j])) + (widen(r6[j]) + widen(r7[j]));
    sum[j] += low + high;
  }
}
FASTADV_SIMD_FUNCTION(add_8_rows)

template <typename T, typename Acc>
FASTADV_INLINE void add_row_body(const T* row, int64_t width, Acc* sum) {
#pragma omp simd
  for (int64_t j = 0; j < width; ++j) sum[j] += widen(row[j]);
}
FASTADV_SIMD_FUNCTION(add_row)

template <typename Acc>
FASTADV_INLINE void divide_body(Acc* values, Acc divisor, int64_t width) {
#pragma omp simd
  for (int64_t j = 0; j < width; ++j) values[j] /= divisor;
}
FASTADV_SIMD_FUNCTION(divide)

template <typename T, typename Acc>
FASTADV_INLINE void scaled_row_body(const Acc* grad, Acc divisor, int64_t width, T* out) {
#pragma omp simd
  for (int64_t j = 0; j < width; ++j) narrow(grad[j] / divisor, out + j);
}
FASTADV_SIMD_FUNCTION(scaled_row)

// Mean of columns [0, width) over the counted rows of [begin, end); `stride` elements a row.
template <typename T, typename Acc>
void mean_of_rows(const T* x, int64_t stride, const bool* mask, int64_t begin, int64_t end,
                  Acc count, int64_t width, Acc* mean) {
  std::fill_n(mean, width, Acc(0));
  const T* rows[kRows];
  int held = 0;
  for (int64_t t = begin; t < end; ++t) {
    if (mask != nullptr && !mask[t]) continue;
    rows[held++] = x + t * stride;
    if (held == kRows) {
      add_8_rows(static_cast<const T* const*>(rows), width, mean);
      held = 0;
    }
  }
  for (int k = 0; k < held; ++k) add_row(rows[k], width, mean);
  if (count > 0) divide(mean, count, width);
}

int64_t counted_rows(const bool* mask, int64_t begin, int64_t end) {
  if (mask == nullptr) return end - begin;
  const auto* bytes = reinterpret_cast<const uint8_t*>(mask);
  int64_t count = 0;
  for (int64_t t = begin; t < end; ++t) count += bytes[t];
  return count;
}

// Threads divide column blocks first and sequences second: blocks are equal work however uneven the
// sequences are. Each element is summed by one thread in row order, so the result does not depend
// on the number of threads.
template <typename T>
void forward(const T* x, const Segments& segments, const bool* mask, int64_t batch, int64_t tokens,
             int64_t hidden, acc_t<T>* mean, acc_t<T>* counts) {
  for (int64_t b = 0; b < batch; ++b) {
    counts[b] = static_cast<acc_t<T>>(counted_rows(mask, segments.begin(b), segments.end(b)));
  }
  const int64_t threads = tokens * hidden < 2 * kElementsPerTask ? 1 : at::get_num_threads();
  const int64_t width =
      std::max<int64_t>(128, ceil_div(ceil_div(hidden, threads), int64_t{64}) * 64);
  const int64_t blocks = ceil_div(hidden, width);
  const int64_t elements = std::max<int64_t>(1, tokens * width / std::max<int64_t>(1, batch));
  at::parallel_for(
      0, blocks * batch, ceil_div(kElementsPerTask, elements), [&](int64_t first, int64_t last) {
        for (int64_t item = first; item < last; ++item) {
          const int64_t b = item % batch;
          const int64_t column = item / batch * width;
          mean_of_rows(x + column, hidden, mask, segments.begin(b), segments.end(b), counts[b],
                       std::min(width, hidden - column), mean + b * hidden + column);
        }
      });
}

template <typename T>
void backward_rows(const acc_t<T>* grad, const acc_t<T>* counts, const Segments& segments,
                   const bool* mask, int64_t batch, int64_t hidden, int64_t first, int64_t last,
                   T* grad_x) {
  std::vector<T> row(hidden);
  int64_t b = 0;
  if (segments.cu_seqlens != nullptr) {
    const int32_t* ends = segments.cu_seqlens + 1;
    b = std::upper_bound(ends, ends + batch, static_cast<int32_t>(first)) - ends;
  } else {
    b = segments.length > 0 ? first / segments.length : batch;
  }
  int64_t ready = -1;
  for (int64_t t = first; t < last; ++t) {
    while (b < batch && t >= segments.end(b)) ++b;
    T* out = grad_x + t * hidden;
    if (b == batch || (mask != nullptr && !mask[t])) {
      std::memset(static_cast<void*>(out), 0, hidden * sizeof(T));
      continue;
    }
    if (ready != b) {
      scaled_row(grad + b * hidden, counts[b], hidden, row.data());
      ready = b;
    }
    std::memcpy(static_cast<void*>(out), row.data(), hidden * sizeof(T));
  }
}

std::tuple<at::Tensor, at::Tensor> masked_mean_pool_cpu(const at::Tensor& x_in,
                                                        const std::optional<at::Tensor>& cu_in,
                                                        const std::optional<at::Tensor>& mask_in,
                                                        int64_t batch) {
  check_float(x_in, "x");
  TORCH_CHECK_VALUE(x_in.dim() == 2, "x has ", x_in.dim(), " dimensions, expected 2");
  const int64_t tokens = x_in.size(0), hidden = x_in.size(1);
  check_segments(x_in, cu_in, mask_in, batch, tokens);
  const at::Tensor x = x_in.contiguous();
  const auto cu_seqlens = contiguous(cu_in), mask = contiguous(mask_in);
  const Segments segments{data_or_null<int32_t>(cu_seqlens), batch == 0 ? 0 : tokens / batch};
  check_offsets(segments.cu_seqlens, batch, tokens);
  const auto options = x.options().dtype(acc_dtype(x.scalar_type()));
  at::Tensor mean = at::empty({batch, hidden}, options);
  at::Tensor counts = at::empty({batch}, options);
  AT_DISPATCH_FLOATING_TYPES_AND2(
      at::kHalf, at::kBFloat16, x.scalar_type(), "masked_mean_pool", [&] {
        forward<scalar_t>(x.const_data_ptr<scalar_t>(), segments, data_or_null<bool>(mask), batch,
                          tokens, hidden, mean.mutable_data_ptr<acc_t<scalar_t>>(),
                          counts.mutable_data_ptr<acc_t<scalar_t>>());
      });
  return {mean, counts};
}

at::Tensor masked_mean_pool_backward_cpu(const at::Tensor& grad_in, const at::Tensor& counts_in,
                                         const std::optional<at::Tensor>& cu_in,
                                         const std::optional<at::Tensor>& mask_in, int64_t tokens,
                                         at::ScalarType dtype) {
  TORCH_CHECK_VALUE(grad_in.dim() == 2, "grad has ", grad_in.dim(), " dimensions, expected 2");
  const int64_t batch = grad_in.size(0), hidden = grad_in.size(1);
  check_dtype(grad_in, acc_dtype(dtype), "grad");
  check_dtype(counts_in, acc_dtype(dtype), "counts");
  check_shape(counts_in, {batch}, "counts");
  check_segments(grad_in, cu_in, mask_in, batch, tokens);
  const at::Tensor grad = grad_in.contiguous(), counts = counts_in.contiguous();
  const auto cu_seqlens = contiguous(cu_in), mask = contiguous(mask_in);
  const Segments segments{data_or_null<int32_t>(cu_seqlens), batch == 0 ? 0 : tokens / batch};
  check_offsets(segments.cu_seqlens, batch, tokens);
  at::Tensor grad_x = at::empty({tokens, hidden}, grad.options().dtype(dtype));
  check_float(grad_x, "grad_x");
  const int64_t grain = ceil_div(kElementsPerTask, std::max<int64_t>(1, hidden));
  AT_DISPATCH_FLOATING_TYPES_AND2(
      at::kHalf, at::kBFloat16, dtype, "masked_mean_pool_backward", [&] {
        const auto* g = grad.const_data_ptr<acc_t<scalar_t>>();
        const auto* n = counts.const_data_ptr<acc_t<scalar_t>>();
        auto* out = grad_x.mutable_data_ptr<scalar_t>();
        at::parallel_for(0, tokens, grain, [&](int64_t first, int64_t last) {
          backward_rows<scalar_t>(g, n, segments, data_or_null<bool>(mask), batch, hidden, first,
                                  last, out);
        });
      });
  return grad_x;
}

}  // namespace
}  // namespace fastadv

// Without cu_seqlens the rows are `batch` sequences of equal length. `counts` (batch,) holds the
// number of counted rows, for the backward.
TORCH_LIBRARY_FRAGMENT(fastadv, m) {
  m.def(
      "masked_mean_pool(Tensor x, Tensor? cu_seqlens, Tensor? mask, SymInt batch)"
      " -> (Tensor mean, Tensor counts)");
  m.def(
      "masked_mean_pool_backward(Tensor grad, Tensor counts, Tensor? cu_seqlens, Tensor? mask,"
      " SymInt tokens, ScalarType dtype) -> Tensor");
}

TORCH_LIBRARY_IMPL(fastadv, CPU, m) {
  m.impl("masked_mean_pool", &fastadv::masked_mean_pool_cpu);
  m.impl("masked_mean_pool_backward", &fastadv::masked_mean_pool_backward_cpu);
}
