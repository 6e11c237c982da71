// Checks of the tensors that raw functions get: outputs are the caller's, so none is made
// contiguous.
#pragma once

#include <ATen/core/Tensor.h>

#include "common.h"

namespace fastadv {

inline void check_dense(const at::Tensor& x, at::ScalarType dtype, at::IntArrayRef shape,
                        const char* name) {
  check_dtype(x, dtype, name);
  check_shape(x, shape, name);
  TORCH_CHECK_VALUE(x.is_contiguous(), name, " has strides ", x.strides(),
                    ", expected a contiguous tensor");
  TORCH_CHECK_VALUE(x.device().is_cpu(), name, " is on ", x.device(), ", expected cpu");
}

inline void check_dense(const std::optional<at::Tensor>& x, at::ScalarType dtype,
                        at::IntArrayRef shape, const char* name) {
  if (x.has_value()) check_dense(*x, dtype, shape, name);
}

template <typename T>
inline T* mutable_data_or_null(const std::optional<at::Tensor>& x) {
  return x.has_value() ? x->mutable_data_ptr<T>() : nullptr;
}

}  // namespace fastadv
