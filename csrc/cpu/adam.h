// One Adam update (Kingma & Ba 2015, algorithm 1) of consecutive elements, and compensated weights,
// which have more bits than float32: the arithmetic of adam.cpp and embedding_adam.cpp.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/BFloat16.h>

#include <cmath>
#include <cstdint>

#include "common.h"
#include "simd.h"

namespace fastadv {

// A float32 weight is the rounded value of weight + compensation; float64 needs no compensation.
template <typename T>
using compensation_t = std::conditional_t<std::is_same_v<T, float>, c10::BFloat16, double>;

// The numbers of one step, t = 1, 2, ...
template <typename T>
struct AdamStep {
  T beta1, rest1, beta2, rest2, step_size, root, eps, decay, scale;

  AdamStep(int64_t t, double lr, double b1, double b2, double epsilon, double weight_decay,
           double grad_scale)
      : beta1(static_cast<T>(b1)),
        rest1(static_cast<T>(1.0 - b1)),
        beta2(static_cast<T>(b2)),
        rest2(static_cast<T>(1.0 - b2)),
        step_size(static_cast<T>(lr / (1.0 - std::pow(b1, static_cast<double>(t))))),
        root(static_cast<T>(1.0 / std::sqrt(1.0 - std::pow(b2, static_cast<double>(t))))),
        eps(static_cast<T>(epsilon)),
        decay(static_cast<T>(lr * weight_decay)),
        scale(static_cast<T>(grad_scale)) {}
};

// weight + compensation += delta. The sum of two floats is a float and a remainder, which is found
// exactly whichever operand is larger (Knuth, TAOCP volume 2, 4.2.2, theorem B).
FASTADV_INLINE void move_weight(float delta, float* weight, c10::BFloat16* compensation) {
  const float more = widen(*compensation) + delta;
  const float sum = *weight + more;
  const float part = sum - *weight;
  narrow((*weight - (sum - part)) + (more - part), compensation);
  *weight = sum;
}

FASTADV_INLINE void move_weight(double delta, double* weight, double*) { *weight += delta; }

FASTADV_INLINE float root_of(float x) { return __builtin_sqrtf(x); }
FASTADV_INLINE double root_of(double x) { return __builtin_sqrt(x); }

template <typename T>
FASTADV_INLINE void adam_row_body(const AdamStep<T>* step, const T* grad, int64_t count, T* weight,
                                  compensation_t<T>* compensation, T* exp_avg, T* exp_avg_sq) {
  const AdamStep<T> s = *step;
#pragma omp simd
  for (int64_t j = 0; j < count; ++j) {
    const T g = grad[j] * s.scale;
    const T m = s.beta1 * exp_avg[j] + s.rest1 * g;
    const T v = s.beta2 * exp_avg_sq[j] + s.rest2 * g * g;
    exp_avg[j] = m;
    exp_avg_sq[j] = v;
    const T moved = -s.step_size * m / (root_of(v) * s.root + s.eps) - s.decay * weight[j];
    move_weight(moved, weight + j, compensation + j);
  }
}

// Checks the arguments that the two operations share.
inline void check_adam(const at::Tensor& weight, const at::Tensor& compensation,
                       const at::Tensor& exp_avg, const at::Tensor& exp_avg_sq) {
  const auto dtype = weight.scalar_type();
  TORCH_CHECK_VALUE(dtype == at::kFloat || dtype == at::kDouble, "weight has dtype ", dtype,
                    ", expected float32 or float64");
  const auto check = [&](const at::Tensor& x, at::ScalarType wanted, const char* name) {
    check_dtype(x, wanted, name);
    check_shape(x, weight.sizes(), name);
    check_device(x, weight, name);
    TORCH_CHECK_VALUE(x.is_contiguous(), name, " has strides ", x.strides(),
                      ", expected a contiguous tensor");
  };
  check(weight, dtype, "weight");
  if (dtype == at::kFloat) check(compensation, at::kBFloat16, "compensation");
  check(exp_avg, dtype, "exp_avg");
  check(exp_avg_sq, dtype, "exp_avg_sq");
}

}  // namespace fastadv
