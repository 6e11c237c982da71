// Linear score, sigmoid and binary cross-entropy in one: schema and CPU kernels.
#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <tuple>
#include <vector>

#include "common.h"
#include "cpu/simd.h"

namespace fastadv {
namespace {

// A task smaller than this costs more to hand to a thread than to do.
constexpr int64_t kElementsPerTask = 65536;

// Four sums side by side, so that the latency of one addition does not set the pace.
template <typename T, typename Acc>
FASTADV_INLINE void dot_body(const T* h, const Acc* w, int64_t width, Acc* result) {
  const int64_t quarter = width / 4;
  const T *h1 = h + quarter, *h2 = h1 + quarter, *h3 = h2 + quarter;
  const Acc *w1 = w + quarter, *w2 = w1 + quarter, *w3 = w2 + quarter;
  Acc s0 = 0, s1 = 0, s2 = 0, s3 = 0;
#pragma omp simd reduction(+ : s0, s1, s2, s3)
  for (int64_t j = 0; j < quarter; ++j) {
    s0 += widen(h[j]) * w[j];
    s1 += widen(h1[j]) * w1[j];
    s2 += widen(h2[j]) * w2[j];
    s3 += widen(h3[j]) * w3[j];
  }
  for (int64_t j = 4 * quarter; j < width; ++j) s0 += widen(h[j]) * w[j];
  *result = (s0 + s1) + (s2 + s3);
}
FASTADV_SIMD_FUNCTION(dot)

template <typename T, typename Acc>
FASTADV_INLINE void scale_to_body(const Acc* w, Acc scale, int64_t width, T* out) {
#pragma omp simd
  for (int64_t j = 0; j < width; ++j) narrow(scale * w[j], out + j);
}
FASTADV_SIMD_FUNCTION(scale_to)

template <typename T, typename Acc>
FASTADV_INLINE void add_4_scaled_rows_body(const T* h, int64_t stride, const Acc* scales,
                                           int64_t width, Acc* sum) {
  const T *h1 = h + stride, *h2 = h1 + stride, *h3 = h2 + stride;
  const Acc s0 = scales[0], s1 = scales[1], s2 = scales[2], s3 = scales[3];
#pragma omp simd
  for (int64_t j = 0; j < width; ++j) {
    sum[j] += (s0 * widen(h[j]) + s1 * widen(h1[j])) + (s2 * widen(h2[j]) + s3 * widen(h3[j]));
  }
}
FASTADV_SIMD_FUNCTION(add_4_scaled_rows)

template <typename T, typename Acc>
FASTADV_INLINE void add_scaled_row_body(const T* h, Acc scale, int64_t width, Acc* sum) {
#pragma omp simd
  for (int64_t j = 0; j < width; ++j) sum[j] += scale * widen(h[j]);
}
FASTADV_SIMD_FUNCTION(add_scaled_row)

// With e = exp(-|z|) nothing overflows, and neither side loses its small values to the other:
// softplus(z) - y z = max(z, 0) - y z + log1p(e);  sigmoid(z) - y = (1 - y) sigmoid(z) - y
// sigmoid(-z).
template <typename Acc>
void bce(Acc z, Acc y, Acc c, Acc* loss, Acc* dz) {
  const Acc e = std::exp(-std::abs(z));
  const Acc large = 1 / (1 + e), small = e / (1 + e);
  const Acc positive = z >= 0 ? large : small, negative = z >= 0 ? small : large;
  *loss = c * ((z > 0 ? z - y * z : -y * z) + std::log1p(e));
  *dz = c * ((1 - y) * positive - y * negative);
}

// The same for p = bound * sigmoid(z) with bound <= 1 / 2, from where log1p(-p) is as good as p;
// log_bound = log(bound). Both derivatives have the factor sigmoid(-z).
template <typename Acc>
void relaxed_bce(Acc z, Acc y, Acc c, Acc bound, Acc log_bound, Acc* loss, Acc* dz) {
  const Acc e = std::exp(-std::abs(z));
  const Acc large = 1 / (1 + e), small = e / (1 + e);
  const Acc positive = z >= 0 ? large : small, negative = z >= 0 ? small : large;
  const Acc p = bound * positive;
  const Acc minus_log_p = (z < 0 ? -z : 0) + std::log1p(e) - log_bound;
  *loss = c * (y * minus_log_p - (1 - y) * std::log1p(-p));
  *dz = c * negative * ((1 - y) * (p / (1 - p)) - y);
}

template <typename T>
acc_t<T> forward(const T* h, const acc_t<T>* w, acc_t<T> bias, const acc_t<T>* targets,
                 const acc_t<T>* sample_weights, double relaxation, int64_t n, int64_t hidden,
                 acc_t<T>* logits, acc_t<T>* dz) {
  using Acc = acc_t<T>;
  std::vector<Acc> losses(n);
  const auto bound = static_cast<Acc>(1 / (2 + relaxation));
  const auto log_bound = static_cast<Acc>(-std::log(2 + relaxation));
  const int64_t grain = ceil_div(kElementsPerTask, std::max<int64_t>(1, hidden));
  at::parallel_for(0, n, grain, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) {
      Acc z = 0;
      dot(h + i * hidden, w, hidden, &z);
      z += bias;
      logits[i] = z;
      const Acc c = sample_weights != nullptr ? sample_weights[i] : Acc(1) / static_cast<Acc>(n);
      if (relaxation == 0) {
        bce(z, targets[i], c, &losses[i], dz + i);
      } else {
        relaxed_bce(z, targets[i], c, bound, log_bound, &losses[i], dz + i);
      }
    }
  });
  double total = 0;
  for (const Acc loss : losses) total += loss;
  return static_cast<Acc>(total);
}

template <typename T>
void grad_weight_block(const T* h, const acc_t<T>* scales, int64_t n, int64_t stride, int64_t width,
                       acc_t<T>* out) {
  std::fill_n(out, width, acc_t<T>(0));
  int64_t i = 0;
  for (; i + 4 <= n; i += 4) add_4_scaled_rows(h + i * stride, stride, scales + i, width, out);
  for (; i < n; ++i) add_scaled_row(h + i * stride, scales[i], width, out);
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> linear_bce_cpu(
    const at::Tensor& h_in, const at::Tensor& weight_in, const at::Tensor& bias,
    const at::Tensor& targets_in, const std::optional<at::Tensor>& sample_weights_in,
    double relaxation) {
  check_float(h_in, "h");
  TORCH_CHECK_VALUE(h_in.dim() == 2, "h has ", h_in.dim(), " dimensions, expected 2");
  const int64_t n = h_in.size(0), hidden = h_in.size(1);
  check_linear_bce(h_in, weight_in, bias, targets_in, sample_weights_in, relaxation);
  const at::Tensor h = h_in.contiguous(), weight = weight_in.contiguous();
  const at::Tensor targets = targets_in.contiguous();
  const auto sample_weights = contiguous(sample_weights_in);
  at::Tensor loss = at::empty({}, weight.options()), logits = at::empty({n}, weight.options());
  at::Tensor dz = at::empty({n}, weight.options());
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, h.scalar_type(), "linear_bce", [&] {
    using Acc = acc_t<scalar_t>;
    *loss.mutable_data_ptr<Acc>() = forward<scalar_t>(
        h.const_data_ptr<scalar_t>(), weight.const_data_ptr<Acc>(), *bias.const_data_ptr<Acc>(),
        targets.const_data_ptr<Acc>(), data_or_null<Acc>(sample_weights), relaxation, n, hidden,
        logits.mutable_data_ptr<Acc>(), dz.mutable_data_ptr<Acc>());
  });
  return {loss, logits, dz};
}

at::Tensor linear_bce_grad_input_cpu(const at::Tensor& grad, const at::Tensor& dz_in,
                                     const at::Tensor& weight_in, at::ScalarType dtype) {
  check_linear_bce_grad(grad, dz_in, dtype);
  TORCH_CHECK_VALUE(weight_in.dim() == 1, "weight has ", weight_in.dim(),
                    " dimensions, expected 1");
  check_dtype(weight_in, acc_dtype(dtype), "weight");
  const at::Tensor dz = dz_in.contiguous(), weight = weight_in.contiguous();
  const int64_t n = dz.size(0), hidden = weight.size(0);
  at::Tensor grad_h = at::empty({n, hidden}, weight.options().dtype(dtype));
  check_float(grad_h, "grad_h");
  const int64_t grain = ceil_div(kElementsPerTask, std::max<int64_t>(1, hidden));
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, dtype, "linear_bce_grad_input", [&] {
    using Acc = acc_t<scalar_t>;
    const Acc scale = *grad.const_data_ptr<Acc>();
    const Acc *d = dz.const_data_ptr<Acc>(), *w = weight.const_data_ptr<Acc>();
    auto* out = grad_h.mutable_data_ptr<scalar_t>();
    at::parallel_for(0, n, grain, [&](int64_t first, int64_t last) {
      for (int64_t i = first; i < last; ++i) scale_to(w, scale * d[i], hidden, out + i * hidden);
    });
  });
  return grad_h;
}

std::tuple<at::Tensor, at::Tensor> linear_bce_grad_params_cpu(const at::Tensor& grad,
                                                              const at::Tensor& dz_in,
                                                              const at::Tensor& h_in) {
  check_float(h_in, "h");
  check_linear_bce_grad(grad, dz_in, h_in.scalar_type());
  TORCH_CHECK_VALUE(h_in.dim() == 2, "h has ", h_in.dim(), " dimensions, expected 2");
  const int64_t n = h_in.size(0), hidden = h_in.size(1);
  check_shape(dz_in, {n}, "dz");
  const at::Tensor dz = dz_in.contiguous(), h = h_in.contiguous();
  at::Tensor grad_weight = at::empty({hidden}, dz.options());
  at::Tensor grad_bias = at::empty({1}, dz.options());
  AT_DISPATCH_FLOATING_TYPES_AND2(
      at::kHalf, at::kBFloat16, h.scalar_type(), "linear_bce_grad_params", [&] {
        using Acc = acc_t<scalar_t>;
        const Acc scale = *grad.const_data_ptr<Acc>();
        const Acc* d = dz.const_data_ptr<Acc>();
        std::vector<Acc> scales(n);
        double total = 0;
        for (int64_t i = 0; i < n; ++i) {
          scales[i] = scale * d[i];
          total += scales[i];
        }
        *grad_bias.mutable_data_ptr<Acc>() = static_cast<Acc>(total);
        const auto* x = h.const_data_ptr<scalar_t>();
        auto* out = grad_weight.mutable_data_ptr<Acc>();
        const int64_t threads = n * hidden < 2 * kElementsPerTask ? 1 : at::get_num_threads();
        const int64_t width =
            std::max<int64_t>(64, ceil_div(ceil_div(hidden, threads), int64_t{64}) * 64);
        at::parallel_for(0, ceil_div(hidden, width), 1, [&](int64_t first, int64_t last) {
          for (int64_t block = first; block < last; ++block) {
            const int64_t column = block * width;
            grad_weight_block(x + column, scales.data(), n, hidden,
                              std::min(width, hidden - column), out + column);
          }
        });
      });
  return {grad_weight, grad_bias};
}

}  // namespace
}  // namespace fastadv

// dz = d loss / d logits, kept for the backward.
TORCH_LIBRARY_FRAGMENT(fastadv, m) {
  m.def(
      "linear_bce(Tensor h, Tensor weight, Tensor bias, Tensor targets, Tensor? sample_weights,"
      " float relaxation=0.0) -> (Tensor loss, Tensor logits, Tensor dz)");
  m.def("linear_bce_grad_input(Tensor grad, Tensor dz, Tensor weight, ScalarType dtype) -> Tensor");
  m.def(
      "linear_bce_grad_params(Tensor grad, Tensor dz, Tensor h)"
      " -> (Tensor grad_weight, Tensor grad_bias)");
}

TORCH_LIBRARY_IMPL(fastadv, CPU, m) {
  m.impl("linear_bce", &fastadv::linear_bce_cpu);
  m.impl("linear_bce_grad_input", &fastadv::linear_bce_grad_input_cpu);
  m.impl("linear_bce_grad_params", &fastadv::linear_bce_grad_params_cpu);
}
