// Bias and GELU: schema and CPU kernels.
#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <torch/library.h>

#include <algorithm>

#include "common.h"
#include "cpu/column_sums.h"
#include "cpu/dense.h"
#include "cpu/gelu.h"

namespace fastadv {
namespace {

// A task smaller than this costs more to hand to a thread than to do.
constexpr int64_t kElementsPerTask = 16384;

FASTADV_SIMD_FUNCTION(bias_gelu_row)
FASTADV_SIMD_FUNCTION(bias_gelu_backward_row)

void bias_gelu_cpu(const at::Tensor& x, const at::Tensor& bias, const at::Tensor& y) {
  check_float(x, "x");
  TORCH_CHECK_VALUE(x.dim() == 2, "x has ", x.dim(), " dimensions, expected 2");
  const int64_t rows = x.size(0), width = x.size(1);
  check_dense(x, x.scalar_type(), x.sizes(), "x");
  check_dense(bias, acc_dtype(x.scalar_type()), {width}, "bias");
  check_dense(y, x.scalar_type(), x.sizes(), "y");
  const int64_t grain = ceil_div(kElementsPerTask, std::max<int64_t>(1, width));
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, x.scalar_type(), "bias_gelu", [&] {
    const auto* in = x.const_data_ptr<scalar_t>();
    const auto* b = bias.const_data_ptr<acc_t<scalar_t>>();
    auto* out = y.mutable_data_ptr<scalar_t>();
    at::parallel_for(0, rows, grain, [&](int64_t first, int64_t last) {
      for (int64_t i = first; i < last; ++i) {
        bias_gelu_row(in + i * width, b, width, out + i * width);
      }
    });
  });
}

void bias_gelu_backward_cpu(const at::Tensor& grad, const at::Tensor& x, const at::Tensor& bias,
                            const at::Tensor& grad_x, const std::optional<at::Tensor>& y,
                            const at::Tensor& grad_bias) {
  check_float(x, "x");
  TORCH_CHECK_VALUE(x.dim() == 2, "x has ", x.dim(), " dimensions, expected 2");
  const auto dtype = x.scalar_type();
  const int64_t width = x.size(1);
  check_dense(x, dtype, x.sizes(), "x");
  check_dense(grad, dtype, x.sizes(), "grad");
  check_dense(grad_x, dtype, x.sizes(), "grad_x");
  check_dense(y, dtype, x.sizes(), "y");
  check_dense(bias, acc_dtype(dtype), {width}, "bias");
  check_dense(grad_bias, acc_dtype(dtype), {width}, "grad_bias");
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, dtype, "bias_gelu_backward", [&] {
    using Acc = acc_t<scalar_t>;
    const auto *g = grad.const_data_ptr<scalar_t>(), *in = x.const_data_ptr<scalar_t>();
    const auto* b = bias.const_data_ptr<Acc>();
    auto* out = grad_x.mutable_data_ptr<scalar_t>();
    auto* again = mutable_data_or_null<scalar_t>(y);
    const RowParts parts(x.size(0));
    sum_over_parts(parts, width, grad_bias.mutable_data_ptr<Acc>(), [&](int64_t part, Acc* sums) {
      for (int64_t i = parts.begin(part); i < parts.end(part); ++i) {
        const int64_t at = i * width;
        bias_gelu_backward_row(g + at, in + at, b, width, out + at,
                               again == nullptr ? again : again + at, sums);
      }
    });
  });
}

}  // namespace
}  // namespace fastadv

TORCH_LIBRARY_FRAGMENT(fastadv, m) {
  m.def("bias_gelu(Tensor x, Tensor bias, Tensor(a!) y) -> ()");
  m.def(
      "bias_gelu_backward(Tensor grad, Tensor x, Tensor bias, Tensor(a!) grad_x, Tensor(b!)? y,"
      " Tensor(c!) grad_bias) -> ()");
}

TORCH_LIBRARY_IMPL(fastadv, CPU, m) {
  m.impl("bias_gelu", &fastadv::bias_gelu_cpu);
  m.impl("bias_gelu_backward", &fastadv::bias_gelu_backward_cpu);
}
