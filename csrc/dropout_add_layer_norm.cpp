// Bias, dropout, residual sum and layer normalisation: schema and CPU kernels.
#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <torch/library.h>

#include <algorithm>
#include <vector>

#include "common.h"
#include "cpu/column_sums.h"
#include "cpu/dense.h"
#include "cpu/layer_norm.h"
#include "cpu/philox.h"

namespace fastadv {
namespace {

// A task smaller than this costs more to hand to a thread than to do.
constexpr int64_t kElementsPerTask = 16384;

FASTADV_SIMD_FUNCTION(dropout_add_row)
FASTADV_SIMD_FUNCTION(row_stats)
FASTADV_SIMD_FUNCTION(normalize_row)
FASTADV_SIMD_FUNCTION(narrow_row)
FASTADV_SIMD_FUNCTION(add_widened_row)
FASTADV_SIMD_FUNCTION(layer_norm_grad_sums)
FASTADV_SIMD_FUNCTION(layer_norm_grad_row)
FASTADV_SIMD_FUNCTION(dropout_grad_row)

template <typename T>
struct Forward {
  using Acc = acc_t<T>;
  const T* x;
  const Acc *bias, *residual, *gain, *beta;
  Acc eps;
  Dropout dropout;
  int64_t width, leading;
  Acc* y;
  T *y_low, *z;
  Acc* stats;

  void rows(int64_t first, int64_t last) const {
    std::vector<Acc> sum(width), factors(dropout_width(width), Acc(1));
    for (int64_t t = first; t < last; ++t) {
      const int64_t at = t * width, saved = t - leading;
      if (dropout.on()) {
        dropout_factors_body(dropout, static_cast<uint32_t>(t), width, factors.data());
      }
      dropout_add_row(x + at, bias, static_cast<const Acc*>(factors.data()), residual + at, width,
                      sum.data());
      const Acc* row = sum.data();
      Acc moments[2];
      row_stats(row, width, eps, static_cast<Acc*>(moments));
      normalize_row(row, static_cast<const Acc*>(moments), gain, beta, width, y + at);
      if (y_low != nullptr) narrow_row(static_cast<const Acc*>(y + at), width, y_low + at);
      if (saved < 0) continue;
      if (z != nullptr) narrow_row(row, width, z + saved * width);
      if (stats != nullptr) std::copy_n(moments, 2, stats + saved * 2);
    }
  }
};

template <typename T>
struct Backward {
  using Acc = acc_t<T>;
  const Acc* grad;
  const T *grad_low, *z;
  const Acc *stats, *gain;
  Dropout dropout;
  int64_t width, leading;
  T* grad_x;
  Acc* grad_residual;

  // Adds the rows' part to sums, (3, width): bias, gain, beta.
  void rows(int64_t first, int64_t last, Acc* sums) const {
    std::vector<Acc> total(width), factors(dropout_width(width), Acc(1));
    for (int64_t t = first; t < last; ++t) {
      const int64_t at = t * width;
      const Acc* g = grad + at;
      if (grad_low != nullptr) {
        add_widened_row(g, grad_low + at, width, total.data());
        g = total.data();
      }
      Acc means[2];
      layer_norm_grad_sums(g, z + at, stats + 2 * t, gain, width, sums + width, sums + 2 * width,
                           static_cast<Acc*>(means));
      layer_norm_grad_row(g, z + at, stats + 2 * t, gain, static_cast<const Acc*>(means), width,
                          grad_residual + at);
      if (dropout.on()) {
        dropout_factors_body(dropout, static_cast<uint32_t>(leading + t), width, factors.data());
      }
      dropout_grad_row(static_cast<const Acc*>(grad_residual + at),
                       static_cast<const Acc*>(factors.data()), width, grad_x + at, sums);
    }
  }
};

void check_leading(int64_t leading, int64_t rows) {
  TORCH_CHECK_VALUE(leading >= 0 && leading <= rows, "leading is ", leading,
                    ", expected at least 0 and at most the rows, ", rows);
}

void dropout_add_layer_norm_cpu(
    const at::Tensor& x, const at::Tensor& bias, const at::Tensor& residual, const at::Tensor& gain,
    const at::Tensor& beta, double eps, double p, const std::optional<at::Tensor>& seed,
    int64_t site, int64_t leading, const at::Tensor& y, const std::optional<at::Tensor>& y_low,
    const std::optional<at::Tensor>& z, const std::optional<at::Tensor>& stats) {
  check_float(x, "x");
  TORCH_CHECK_VALUE(x.dim() == 2, "x has ", x.dim(), " dimensions, expected 2");
  const auto low = x.scalar_type(), acc = acc_dtype(low);
  const int64_t rows = x.size(0), width = x.size(1);
  check_leading(leading, rows);
  check_dense(x, low, x.sizes(), "x");
  check_dense(bias, acc, {width}, "bias");
  check_dense(residual, acc, x.sizes(), "residual");
  check_dense(gain, acc, {width}, "gain");
  check_dense(beta, acc, {width}, "beta");
  check_dense(y, acc, x.sizes(), "y");
  check_dense(y_low, low, x.sizes(), "y_low");
  check_dense(z, low, {rows - leading, width}, "z");
  check_dense(stats, acc, {rows - leading, 2}, "stats");
  const Dropout dropout = make_dropout(p, seed, site);
  const int64_t grain = ceil_div(kElementsPerTask, std::max<int64_t>(1, width));
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, low, "dropout_add_layer_norm", [&] {
    using Acc = acc_t<scalar_t>;
    const Forward<scalar_t> forward{
        x.const_data_ptr<scalar_t>(),
        bias.const_data_ptr<Acc>(),
        residual.const_data_ptr<Acc>(),
        gain.const_data_ptr<Acc>(),
        beta.const_data_ptr<Acc>(),
        static_cast<Acc>(eps),
        dropout,
        width,
        leading,
        y.mutable_data_ptr<Acc>(),
        mutable_data_or_null<scalar_t>(y_low),
        mutable_data_or_null<scalar_t>(z),
        mutable_data_or_null<Acc>(stats),
    };
    at::parallel_for(0, rows, grain,
                     [&](int64_t first, int64_t last) { forward.rows(first, last); });
  });
}

void dropout_add_layer_norm_backward_cpu(
    const at::Tensor& grad, const std::optional<at::Tensor>& grad_low, const at::Tensor& z,
    const at::Tensor& stats, const at::Tensor& gain, double p,
    const std::optional<at::Tensor>& seed, int64_t site, int64_t leading, const at::Tensor& grad_x,
    const at::Tensor& grad_residual, const at::Tensor& grad_vectors) {
  check_float(z, "z");
  TORCH_CHECK_VALUE(z.dim() == 2, "z has ", z.dim(), " dimensions, expected 2");
  const auto low = z.scalar_type(), acc = acc_dtype(low);
  const int64_t rows = z.size(0), width = z.size(1);
  TORCH_CHECK_VALUE(leading >= 0, "leading is ", leading, ", expected no negative number");
  check_dense(z, low, z.sizes(), "z");
  check_dense(grad, acc, z.sizes(), "grad");
  check_dense(grad_low, low, z.sizes(), "grad_low");
  check_dense(stats, acc, {rows, 2}, "stats");
  check_dense(gain, acc, {width}, "gain");
  check_dense(grad_x, low, z.sizes(), "grad_x");
  check_dense(grad_residual, acc, z.sizes(), "grad_residual");
  check_dense(grad_vectors, acc, {3, width}, "grad_vectors");
  const Dropout dropout = make_dropout(p, seed, site);
  AT_DISPATCH_FLOATING_TYPES_AND2(
      at::kHalf, at::kBFloat16, low, "dropout_add_layer_norm_backward", [&] {
        using Acc = acc_t<scalar_t>;
        const Backward<scalar_t> backward{
            grad.const_data_ptr<Acc>(),
            data_or_null<scalar_t>(grad_low),
            z.const_data_ptr<scalar_t>(),
            stats.const_data_ptr<Acc>(),
            gain.const_data_ptr<Acc>(),
            dropout,
            width,
            leading,
            grad_x.mutable_data_ptr<scalar_t>(),
            grad_residual.mutable_data_ptr<Acc>(),
        };
        const RowParts parts(rows);
        sum_over_parts(parts, 3 * width, grad_vectors.mutable_data_ptr<Acc>(),
                       [&](int64_t part, Acc* sums) {
                         backward.rows(parts.begin(part), parts.end(part), sums);
                       });
      });
}

}  // namespace
}  // namespace fastadv

TORCH_LIBRARY_FRAGMENT(fastadv, m) {
  m.def(
      "dropout_add_layer_norm(Tensor x, Tensor bias, Tensor residual, Tensor gain, Tensor beta,"
      " float eps, float p, Tensor? seed, int site, int leading, Tensor(a!) y, Tensor(b!)? y_low,"
      " Tensor(c!)? z, Tensor(d!)? stats) -> ()");
  m.def(
      "dropout_add_layer_norm_backward(Tensor grad, Tensor? grad_low, Tensor z, Tensor stats,"
      " Tensor gain, float p, Tensor? seed, int site, int leading, Tensor(a!) grad_x,"
      " Tensor(b!) grad_residual, Tensor(c!) grad_vectors) -> ()");
}

TORCH_LIBRARY_IMPL(fastadv, CPU, m) {
  m.impl("dropout_add_layer_norm", &fastadv::dropout_add_layer_norm_cpu);
  m.impl("dropout_add_layer_norm_backward", &fastadv::dropout_add_layer_norm_backward_cpu);
}
