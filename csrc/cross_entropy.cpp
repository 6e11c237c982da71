// Softmax cross-entropy of a classifier with many classes: schema and CPU kernels.
#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "common.h"
#include "cpu/dense.h"
#include "cpu/exp.h"

namespace fastadv {
namespace {

// A task smaller than this costs more to hand to a thread than to do.
constexpr int64_t kElementsPerTask = 16384;
// Columns whose maximum is taken before their exponentials, so that they are read from memory once.
constexpr int64_t kChunk = 4096;
// Below this, exp_of gives the smallest normal number. It is taken as 0 here, so that excluded
// classes have a gradient of 0 and no product is a slow subnormal number.
constexpr int kExpEnd = -87;

template <typename T>
constexpr int kExpBits = 8 * sizeof(T);

// Four maxima side by side, so that the latency of one comparison does not set the pace. NaN is
// ignored here: the sum has it.
template <typename T, typename Acc>
FASTADV_INLINE void max_of_body(const T* x, int64_t width, Acc* largest) {
  const int64_t quarter = width / 4;
  const T *x1 = x + quarter, *x2 = x1 + quarter, *x3 = x2 + quarter;
  Acc m0 = *largest, m1 = m0, m2 = m0, m3 = m0;
#pragma omp simd reduction(max : m0, m1, m2, m3)
  for (int64_t j = 0; j < quarter; ++j) {
    const Acc v0 = widen(x[j]), v1 = widen(x1[j]), v2 = widen(x2[j]), v3 = widen(x3[j]);
    m0 = v0 > m0 ? v0 : m0;
    m1 = v1 > m1 ? v1 : m1;
    m2 = v2 > m2 ? v2 : m2;
    m3 = v3 > m3 ? v3 : m3;
  }
  for (int64_t j = 4 * quarter; j < width; ++j) m0 = widen(x[j]) > m0 ? widen(x[j]) : m0;
  *largest = std::max(std::max(m0, m1), std::max(m2, m3));
}
FASTADV_SIMD_FUNCTION(max_of)

template <typename T, typename Acc>
FASTADV_INLINE void sum_exp_body(const T* x, Acc largest, int64_t width, Acc* sum) {
  Acc total = 0;
#pragma omp simd reduction(+ : total)
  for (int64_t j = 0; j < width; ++j) total += exp_of<kExpBits<T>>(widen(x[j]) - largest);
  *sum = total;
}
FASTADV_SIMD_FUNCTION(sum_exp)

// out = scale * exp(x - normalizer) for one row. x may be out.
template <typename T, typename Acc>
FASTADV_INLINE void softmax_scaled_body(const T* x, Acc normalizer, Acc scale, int64_t width,
                                        T* out) {
#pragma omp simd
  for (int64_t j = 0; j < width; ++j) {
    const Acc d = widen(x[j]) - normalizer;
    const Acc p = exp_of<kExpBits<T>>(d);
    // float64 has no such limit. NaN compares as not below it, and stays NaN.
    narrow(scale * (sizeof(Acc) == 4 && d < kExpEnd ? Acc(0) : p), out + j);
  }
}
FASTADV_SIMD_FUNCTION(softmax_scaled)

template <typename T>
void forward_row(const T* x, int64_t width, int64_t target, acc_t<T>* normalizer, acc_t<T>* loss) {
  using Acc = acc_t<T>;
  Acc largest = -std::numeric_limits<Acc>::infinity(), sum = 0;
  // The number to subtract: finite, because -inf minus -inf is NaN.
  Acc base = std::numeric_limits<Acc>::lowest();
  for (int64_t at = 0; at < width; at += kChunk) {
    const int64_t size = std::min(kChunk, width - at);
    max_of(x + at, size, &largest);
    if (largest > base) {
      sum *= std::exp(base - largest);
      base = largest;
    }
    Acc part;
    sum_exp(x + at, base, size, &part);
    sum += part;
  }
  const Acc log_sum = std::log(sum);
  *normalizer = largest + log_sum;
  // In this order large logits cost no precision.
  *loss = (largest - widen(x[target])) + log_sum;
}

template <typename T>
void backward_row(acc_t<T> grad, const T* x, int64_t width, int64_t target, acc_t<T> normalizer,
                  T* out) {
  // Read before the row is overwritten, as x may be out; expm1 gives p - 1 without cancellation.
  const acc_t<T> less_one = std::expm1(widen(x[target]) - normalizer);
  softmax_scaled(x, normalizer, grad, width, out);
  narrow(grad * less_one, out + target);
}

int64_t grain_of(int64_t width) { return ceil_div(kElementsPerTask, std::max<int64_t>(1, width)); }

void check_targets(const at::Tensor& targets, int64_t classes) {
  const auto* target = targets.const_data_ptr<int64_t>();
  for (int64_t i = 0; i < targets.size(0); ++i) {
    TORCH_CHECK_VALUE(target[i] >= 0 && target[i] < classes, "targets[", i, "] is ", target[i],
                      ", expected at least 0 and less than ", classes);
  }
}

void cross_entropy_cpu(const at::Tensor& logits, const at::Tensor& targets,
                       const at::Tensor& normalizers, const at::Tensor& losses) {
  check_float(logits, "logits");
  TORCH_CHECK_VALUE(logits.dim() == 2, "logits has ", logits.dim(), " dimensions, expected 2");
  const auto dtype = logits.scalar_type();
  const int64_t rows = logits.size(0), width = logits.size(1);
  check_dense(logits, dtype, logits.sizes(), "logits");
  check_dense(targets, at::kLong, {rows}, "targets");
  check_dense(normalizers, acc_dtype(dtype), {rows}, "normalizers");
  check_dense(losses, acc_dtype(dtype), {rows}, "losses");
  check_targets(targets, width);
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, dtype, "cross_entropy", [&] {
    using Acc = acc_t<scalar_t>;
    const auto* x = logits.const_data_ptr<scalar_t>();
    const auto* target = targets.const_data_ptr<int64_t>();
    auto *normalizer = normalizers.mutable_data_ptr<Acc>(), *loss = losses.mutable_data_ptr<Acc>();
    at::parallel_for(0, rows, grain_of(width), [&](int64_t first, int64_t last) {
      for (int64_t i = first; i < last; ++i) {
        forward_row(x + i * width, width, target[i], normalizer + i, loss + i);
      }
    });
  });
}

void cross_entropy_backward_cpu(const at::Tensor& grad, const std::optional<at::Tensor>& logits_in,
                                const at::Tensor& targets, const at::Tensor& normalizers,
                                const at::Tensor& grad_logits) {
  const at::Tensor& logits = logits_in.has_value() ? *logits_in : grad_logits;
  check_float(logits, "logits");
  TORCH_CHECK_VALUE(logits.dim() == 2, "logits has ", logits.dim(), " dimensions, expected 2");
  const auto dtype = logits.scalar_type();
  const int64_t rows = logits.size(0), width = logits.size(1);
  check_dense(logits, dtype, logits.sizes(), "logits");
  check_dense(grad, acc_dtype(dtype), {rows}, "grad");
  check_dense(targets, at::kLong, {rows}, "targets");
  check_dense(normalizers, acc_dtype(dtype), {rows}, "normalizers");
  check_dense(grad_logits, dtype, logits.sizes(), "grad_logits");
  check_targets(targets, width);
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, dtype, "cross_entropy_backward", [&] {
    using Acc = acc_t<scalar_t>;
    const auto *g = grad.const_data_ptr<Acc>(), *normalizer = normalizers.const_data_ptr<Acc>();
    const auto* x = logits.const_data_ptr<scalar_t>();
    const auto* target = targets.const_data_ptr<int64_t>();
    auto* out = grad_logits.mutable_data_ptr<scalar_t>();
    at::parallel_for(0, rows, grain_of(width), [&](int64_t first, int64_t last) {
      for (int64_t i = first; i < last; ++i) {
        backward_row(g[i], x + i * width, width, target[i], normalizer[i], out + i * width);
      }
    });
  });
}

}  // namespace
}  // namespace fastadv

// normalizers are logsumexp of each row, kept for the backward. Without logits, grad_logits holds
// them and is overwritten with their gradient: this way the schema declares every argument that
// changes.
TORCH_LIBRARY_FRAGMENT(fastadv, m) {
  m.def(
      "cross_entropy(Tensor logits, Tensor targets, Tensor(a!) normalizers, Tensor(b!) losses)"
      " -> ()");
  m.def(
      "cross_entropy_backward(Tensor grad, Tensor? logits, Tensor targets, Tensor normalizers,"
      " Tensor(a!) grad_logits) -> ()");
}

TORCH_LIBRARY_IMPL(fastadv, CPU, m) {
  m.impl("cross_entropy", &fastadv::cross_entropy_cpu);
  m.impl("cross_entropy_backward", &fastadv::cross_entropy_backward_cpu);
}
