// Checks and small helpers that the operations share, on the host side of every device.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/Exception.h>

#include <cmath>
#include <cstdint>
#include <optional>

namespace fastadv {

inline at::ScalarType acc_dtype(at::ScalarType dtype) {
  return dtype == at::kDouble ? at::kDouble : at::kFloat;
}

inline void check_float(const at::Tensor& x, const char* name) {
  const auto dtype = x.scalar_type();
  TORCH_CHECK_VALUE(
      dtype == at::kFloat || dtype == at::kDouble || dtype == at::kHalf || dtype == at::kBFloat16,
      name, " has dtype ", dtype, ", expected float32, float64, float16 or bfloat16");
}

inline void check_shape(const at::Tensor& x, at::IntArrayRef shape, const char* name) {
  TORCH_CHECK_VALUE(x.sizes() == shape, name, " has shape ", x.sizes(), ", expected ", shape);
}

inline void check_dtype(const at::Tensor& x, at::ScalarType dtype, const char* name) {
  TORCH_CHECK_VALUE(x.scalar_type() == dtype, name, " has dtype ", x.scalar_type(), ", expected ",
                    dtype);
}

inline void check_device(const at::Tensor& x, const at::Tensor& like, const char* name) {
  TORCH_CHECK_VALUE(x.device() == like.device(), name, " is on ", x.device(), ", expected ",
                    like.device());
}

// Checks rows [0, tokens) that are cut into `batch` sequences: by cu_seqlens (batch + 1,) int32 or,
// without it, into equal lengths; mask (tokens,) bool says which rows count.
inline void check_segments(const at::Tensor& like, const std::optional<at::Tensor>& cu_seqlens,
                           const std::optional<at::Tensor>& mask, int64_t batch, int64_t tokens) {
  TORCH_CHECK_VALUE(batch >= 0 && tokens >= 0, "batch and tokens are ", batch, " and ", tokens,
                    ", expected no negative number");
  if (cu_seqlens.has_value()) {
    check_dtype(*cu_seqlens, at::kInt, "cu_seqlens");
    check_shape(*cu_seqlens, {batch + 1}, "cu_seqlens");
    check_device(*cu_seqlens, like, "cu_seqlens");
  } else {
    TORCH_CHECK_VALUE(batch == 0 ? tokens == 0 : tokens % batch == 0, "x has ", tokens,
                      " rows, expected a multiple of the batch size ", batch);
  }
  if (mask.has_value()) {
    check_dtype(*mask, at::kBool, "mask");
    check_shape(*mask, {tokens}, "mask");
    check_device(*mask, like, "mask");
  }
}

inline void check_linear_bce(const at::Tensor& h, const at::Tensor& weight, const at::Tensor& bias,
                             const at::Tensor& targets,
                             const std::optional<at::Tensor>& sample_weights, double relaxation) {
  const auto dtype = acc_dtype(h.scalar_type());
  const auto check = [&](const at::Tensor& x, int64_t size, const char* name) {
    check_dtype(x, dtype, name);
    check_shape(x, {size}, name);
    check_device(x, h, name);
  };
  check(weight, h.size(1), "weight");
  check(bias, 1, "bias");
  check(targets, h.size(0), "targets");
  if (sample_weights.has_value()) check(*sample_weights, h.size(0), "sample_weights");
  TORCH_CHECK_VALUE(std::isfinite(relaxation) && relaxation >= 0, "relaxation is ", relaxation,
                    ", expected a finite number of at least 0");
}

inline void check_linear_bce_grad(const at::Tensor& grad, const at::Tensor& dz,
                                  at::ScalarType dtype) {
  check_dtype(grad, acc_dtype(dtype), "grad");
  check_shape(grad, {}, "grad");
  check_dtype(dz, acc_dtype(dtype), "dz");
  check_device(dz, grad, "dz");
  TORCH_CHECK_VALUE(dz.dim() == 1, "dz has ", dz.dim(), " dimensions, expected 1");
}

inline std::optional<at::Tensor> contiguous(const std::optional<at::Tensor>& x) {
  return x.has_value() ? std::optional<at::Tensor>(x->contiguous()) : std::nullopt;
}

template <typename T>
inline const T* data_or_null(const std::optional<at::Tensor>& x) {
  return x.has_value() ? x->const_data_ptr<T>() : nullptr;
}

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

}  // namespace fastadv
