// Matrix products with a weight and their gradients: schema and CPU kernels.
//
// In bfloat16, where the processor supports it, weights are laid out once for oneDNN's block
// products (brgemm.h), and a block of the result is finished while it is in cache. Everything else
// is ATen's matrix product, tile by tile (serial_matmul.h).
#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <numeric>
#include <tuple>
#include <vector>

#include "common.h"
#include "cpu/dense.h"
#include "cpu/gelu.h"
#include "cpu/serial_matmul.h"
#include "cpu/weight_products.h"

namespace fastadv {
namespace {

template <typename T>
FASTADV_INLINE void add_row_body(const T* row, int64_t width, acc_t<T>* sum) {
#pragma omp simd
  for (int64_t j = 0; j < width; ++j) sum[j] += widen(row[j]);
}
FASTADV_SIMD_FUNCTION(add_row)
FASTADV_SIMD_FUNCTION(bias_gelu_row)
FASTADV_SIMD_FUNCTION(bias_gelu_backward_row)

// Sums of columns, one token after the other.
template <typename T>
void column_sums(const T* g, int64_t rows, int64_t n, acc_t<T>* sums) {
  at::parallel_for(0, ceil_div(n, 128), 1, [&](int64_t first, int64_t last) {
    for (int64_t block = first; block < last; ++block) {
      const int64_t column = block * 128, width = std::min<int64_t>(128, n - column);
      std::fill_n(sums + column, width, acc_t<T>(0));
      for (int64_t t = 0; t < rows; ++t) add_row(g + t * n + column, width, sums + column);
    }
  });
}

// The sum of squares of x (rows, n): any thread may take a row, and the rows' sums are added in
// order.
template <typename T>
double sum_of_squares(const T* x, int64_t rows, int64_t n) {
  std::vector<double> sums(rows);
  at::parallel_for(0, rows, 16, [&](int64_t first, int64_t last) {
    for (int64_t row = first; row < last; ++row) {
      T sum;
      square_sum(x + row * n, n, &sum);
      sums[row] = sum;
    }
  });
  return std::accumulate(sums.begin(), sums.end(), 0.0);
}

std::tuple<at::Tensor, at::Tensor> linear_pack_cpu(const at::Tensor& weight_in,
                                                   at::ScalarType dtype) {
  TORCH_CHECK_VALUE(weight_in.dim() == 2, "weight has ", weight_in.dim(),
                    " dimensions, expected 2");
  check_dtype(weight_in, acc_dtype(dtype), "weight");
  const at::Tensor weight = weight_in.contiguous();
  const int64_t n = weight.size(0), k = weight.size(1);
  if (!packs(dtype, n) || !packs(dtype, k)) {
    const at::Tensor low = weight.to(dtype);
    // Autograd forbids an operation to return its argument, or one tensor twice.
    return {low.is_same(weight) ? weight.clone() : low, weight.to(dtype).t().contiguous()};
  }
  at::Tensor forward = pooled_empty({n * k}, dtype), backward = pooled_empty({n * k}, dtype);
#if defined(FASTADV_AVX512)
  const auto* w = weight.const_data_ptr<float>();
  pack_weight(w, n, k, static_cast<uint32_t*>(forward.mutable_data_ptr()),
              static_cast<uint32_t*>(backward.mutable_data_ptr()));
#endif
  return {forward, backward};
}

void linear_cpu(const at::Tensor& x, const at::Tensor& packed,
                const std::optional<at::Tensor>& bias, const at::Tensor& y) {
  check_float(x, "x");
  TORCH_CHECK_VALUE(x.dim() == 2 && y.dim() == 2, "x and y have ", x.dim(), " and ", y.dim(),
                    " dimensions, expected 2");
  const int64_t rows = x.size(0), depth = x.size(1), n = y.size(1);
  check_shape(y, {rows, n}, "y");
  check_dtype(y, x.scalar_type(), "y");
  check_dtype(packed, x.scalar_type(), "packed");
  if (bias.has_value()) {
    check_dtype(*bias, acc_dtype(x.scalar_type()), "bias");
    check_shape(*bias, {n}, "bias");
  }
  TORCH_CHECK_VALUE(x.is_contiguous() && y.is_contiguous(),
                    "x or y is strided, expected rows end to end");
  if (packed.dim() == 2) {
    check_shape(packed, {n, depth}, "packed");
    serial_linear(x, packed, bias, y);
    return;
  }
  check_shape(packed, {n * depth}, "packed");
#if defined(FASTADV_AVX512)
  TORCH_CHECK_VALUE(packs(x.scalar_type(), depth),
                    "packed is one-dimensional, expected (N, K) for ", x.scalar_type());
  const float* b = data_or_null<float>(bias);
  auto* out = y.mutable_data_ptr<BFloat16>();
  product(x.const_data_ptr<BFloat16>(), rows, depth, packed.const_data_ptr<BFloat16>(), n,
          [&](int64_t row, int64_t count, int64_t column, int64_t columns, const float* sums) {
            for (int64_t r = 0; r < count; ++r) {
              BFloat16* to = out + (row + r) * n + column;
              if (b == nullptr) {
                round_row(sums + r * columns, columns, to);
              } else {
                add_bias_row(sums + r * columns, b + column, columns, to);
              }
            }
          });
#endif
}

// The feed-forward's first matrix product and what follows it, block by block: y (if given) as
// `linear` would give it, activated = gelu(y + bias).
void linear_gelu_cpu(const at::Tensor& x, const at::Tensor& packed, const at::Tensor& bias,
                     const std::optional<at::Tensor>& y, const at::Tensor& activated) {
  check_dtype(x, at::kBFloat16, "x");
  TORCH_CHECK_VALUE(x.dim() == 2 && activated.dim() == 2 && packed.dim() == 1,
                    "x, activated and packed have ", x.dim(), ", ", activated.dim(), " and ",
                    packed.dim(), " dimensions, expected 2, 2 and 1");
  const int64_t rows = x.size(0), depth = x.size(1), n = activated.size(1);
  check_dense(x, at::kBFloat16, {rows, depth}, "x");
  check_dense(packed, at::kBFloat16, {n * depth}, "packed");
  check_dense(bias, at::kFloat, {n}, "bias");
  check_dense(y, at::kBFloat16, {rows, n}, "y");
  check_dense(activated, at::kBFloat16, {rows, n}, "activated");
#if defined(FASTADV_AVX512)
  const float* b = bias.const_data_ptr<float>();
  auto* kept = mutable_data_or_null<BFloat16>(y);
  auto* out = activated.mutable_data_ptr<BFloat16>();
  product(x.const_data_ptr<BFloat16>(), rows, depth, packed.const_data_ptr<BFloat16>(), n,
          [&](int64_t row, int64_t count, int64_t column, int64_t columns, const float* sums) {
            for (int64_t r = 0; r < count; ++r) {
              const int64_t at = (row + r) * n + column;
              // Without y, the result's memory holds the rounded values of y first.
              BFloat16* rounded = kept == nullptr ? out + at : kept + at;
              round_row(sums + r * columns, columns, rounded);
              bias_gelu_row(static_cast<const BFloat16*>(rounded), b + column, columns, out + at);
            }
          });
#endif
}

// The backward of the same: from the gradient of the second matrix product's result, through its
// weight, to the gradient of the first one's result; gelu is recomputed.
void linear_gelu_backward_cpu(const at::Tensor& grad, const at::Tensor& packed, const at::Tensor& x,
                              const at::Tensor& bias, const at::Tensor& grad_x,
                              const at::Tensor& activated, const at::Tensor& grad_bias) {
  check_dtype(grad, at::kBFloat16, "grad");
  TORCH_CHECK_VALUE(grad.dim() == 2 && x.dim() == 2 && packed.dim() == 1,
                    "grad, x and packed have ", grad.dim(), ", ", x.dim(), " and ", packed.dim(),
                    " dimensions, expected 2, 2 and 1");
  const int64_t rows = grad.size(0), depth = grad.size(1), n = x.size(1);
  check_dense(grad, at::kBFloat16, {rows, depth}, "grad");
  check_dense(packed, at::kBFloat16, {n * depth}, "packed");
  check_dense(x, at::kBFloat16, {rows, n}, "x");
  check_dense(bias, at::kFloat, {n}, "bias");
  check_dense(grad_x, at::kBFloat16, {rows, n}, "grad_x");
  check_dense(activated, at::kBFloat16, {rows, n}, "activated");
  check_dense(grad_bias, at::kFloat, {n}, "grad_bias");
#if defined(FASTADV_AVX512)
  const auto* in = x.const_data_ptr<BFloat16>();
  const float* b = bias.const_data_ptr<float>();
  auto* out = grad_x.mutable_data_ptr<BFloat16>();
  auto* again = activated.mutable_data_ptr<BFloat16>();
  // One sum per block of rows: the order does not depend on which thread computes which block.
  std::vector<float> parts(ceil_div(rows, kBlockRows) * n, 0.0f);
  product(grad.const_data_ptr<BFloat16>(), rows, depth, packed.const_data_ptr<BFloat16>(), n,
          [&](int64_t row, int64_t count, int64_t column, int64_t columns, const float* sums) {
            for (int64_t r = 0; r < count; ++r) {
              const int64_t at = (row + r) * n + column;
              round_row(sums + r * columns, columns, out + at);
              bias_gelu_backward_row(static_cast<const BFloat16*>(out + at), in + at, b + column,
                                     columns, out + at, again + at,
                                     parts.data() + row / kBlockRows * n + column);
            }
          });
  column_sums(parts.data(), ceil_div(rows, kBlockRows), n, grad_bias.mutable_data_ptr<float>());
#endif
}

void linear_backward_weight_cpu(const at::Tensor& grad, const at::Tensor& x,
                                const at::Tensor& grad_weight,
                                const std::optional<at::Tensor>& grad_bias,
                                const std::optional<at::Tensor>& squares) {
  check_float(x, "x");
  TORCH_CHECK_VALUE(x.dim() == 2 && grad.dim() == 2, "grad and x have ", grad.dim(), " and ",
                    x.dim(), " dimensions, expected 2");
  const int64_t rows = x.size(0), n = grad.size(1), k = x.size(1);
  const auto acc = acc_dtype(x.scalar_type());
  check_shape(grad, {rows, n}, "grad");
  check_dtype(grad, x.scalar_type(), "grad");
  check_shape(grad_weight, {n, k}, "grad_weight");
  check_dtype(grad_weight, acc, "grad_weight");
  TORCH_CHECK_VALUE(grad.is_contiguous() && x.is_contiguous() && grad_weight.is_contiguous(),
                    "grad, x or grad_weight is strided, expected rows end to end");
  if (grad_bias.has_value()) {
    check_shape(*grad_bias, {n}, "grad_bias");
    check_dtype(*grad_bias, acc, "grad_bias");
  }
  check_dense(squares, at::kDouble, {}, "squares");
  at::Tensor out = grad_weight;
  if (packs(x.scalar_type(), 2) && rows > 0) {
#if defined(FASTADV_AVX512)
    weight_gradient(grad.const_data_ptr<BFloat16>(), x.const_data_ptr<BFloat16>(), rows, n, k,
                    out.mutable_data_ptr<float>(), mutable_data_or_null<double>(squares));
#endif
  } else {
    serial_matmul(grad.to(acc).t(), x.to(acc), out);
  }
  if (squares.has_value() && !(packs(x.scalar_type(), 2) && rows > 0)) {
    AT_DISPATCH_FLOATING_TYPES(acc, "linear_backward_squares", [&] {
      *squares->mutable_data_ptr<double>() = sum_of_squares(out.const_data_ptr<scalar_t>(), n, k);
    });
  }
  if (!grad_bias.has_value()) return;
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, x.scalar_type(), "linear_backward",
                                  [&] {
                                    column_sums(grad.const_data_ptr<scalar_t>(), rows, n,
                                                grad_bias->mutable_data_ptr<acc_t<scalar_t>>());
                                  });
}

}  // namespace
}  // namespace fastadv

// `linear_pack` gives the two layouts of a weight (N, K), for y = x W^T and for grad_x = grad W:
// each is an opaque (N * K,) or a plain matrix. `linear` multiplies by either; outputs are the
// caller's.
TORCH_LIBRARY_FRAGMENT(fastadv, m) {
  m.def(
      "linear_pack(Tensor weight, ScalarType dtype) -> (Tensor forward, "
      "Tensor backward)");
  m.def("linear(Tensor x, Tensor packed, Tensor? bias, Tensor(a!) y) -> ()");
  m.def(
      "linear_gelu(Tensor x, Tensor packed, Tensor bias, Tensor(a!)? y, Tensor(b!) activated)"
      " -> ()");
  m.def(
      "linear_gelu_backward(Tensor grad, Tensor packed, Tensor x, Tensor bias,"
      " Tensor(a!) grad_x, Tensor(b!) activated, Tensor(c!) grad_bias) -> ()");
  m.def(
      "linear_backward_weight(Tensor grad, Tensor x, Tensor(a!) grad_weight,"
      " Tensor(b!)? grad_bias, Tensor(c!)? squares) -> ()");
}

TORCH_LIBRARY_IMPL(fastadv, CPU, m) {
  m.impl("linear_pack", &fastadv::linear_pack_cpu);
  m.impl("linear", &fastadv::linear_cpu);
  m.impl("linear_gelu", &fastadv::linear_gelu_cpu);
  m.impl("linear_gelu_backward", &fastadv::linear_gelu_backward_cpu);
  m.impl("linear_backward_weight", &fastadv::linear_backward_weight_cpu);
}
