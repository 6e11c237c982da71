// gelu(v) = v Phi(v), the exact form, and its derivative, in loops that a compiler vectorises.
//
// Everything is computed from the upper tail of the normal distribution, for t = |v| >= 0:
//   tail(t) = Phi(-t) = exp(-t^2 / 2) M(t),  M(t) = erfc(t / sqrt 2) exp(t^2 / 2) / 2,
//   gelu(v) = max(v, 0) - t tail(t),
//   gelu'(v) = s for v < 0 and 1 - s otherwise, s = tail(t) - t exp(-t^2 / 2) / sqrt(2 pi).
// Nothing cancels this way, so gelu keeps its relative precision where it is small. M is a quotient
// of polynomials with positive coefficients, a minimax fit of the relative error on [0, 13.4].
#pragma once

#include <cmath>
#include <type_traits>

#include "simd.h"

namespace fastadv {

// Beyond this, exp(-t^2 / 2) is below the smallest normal number and is taken as 0.
constexpr float kTailEnd = 13.27f;

template <typename Acc>
struct NormalTail {
  Acc t;        // |v|, at most kTailEnd
  Acc density;  // exp(-t^2 / 2), not divided by sqrt(2 pi)
  Acc tail;     // Phi(-t)
};

// 2^n for an integer n of -127 (zero) to 127, given as n + 1.5 * 2^23, which ends in n's bits.
FASTADV_INLINE float power_of_two(float shifted) {
  const uint32_t n = static_cast<uint32_t>(bits_of(shifted));
  return float_of(static_cast<int32_t>((n << 23) + (127u << 23)));
}

// Adding it rounds to an integer; the library function for that is a call without SSE 4.1.
constexpr float kRounder = 12582912.0f;

// For results of 16 bits: relative errors of 2e-5 (M), 3e-6 (2^f) and 8e-6 (the rounding of t^2).
FASTADV_INLINE NormalTail<float> normal_tail_16(float v) {
  const float size = float_of(bits_of(v) & 0x7fffffff);
  // Written so that NaN stays NaN.
  const float t = kTailEnd < size ? kTailEnd : size;
  const float log2 = t * t * -0.721347520f;  // -1 / (2 ln 2)
  const float shifted = log2 + kRounder;
  const float f = log2 - (shifted - kRounder);
  float power = 0.00957010210f;
  power = power * f + 0.0559178665f;
  power = power * f + 0.240247443f;
  power = power * f + 0.693121791f;
  power = power * f + 0.999999285f;
  const float density = power * power_of_two(shifted);
  const float above = (0.0621089078f * t + 0.277284473f) * t + 0.500011563f;
  const float below = ((0.15549773f * t + 0.700294852f) * t + 1.35317481f) * t + 1;
  return {t, density, density * above / below};
}

// Within a few units in the last place of float32, for every t: t^2 is split into h + l, with h
// exact.
FASTADV_INLINE NormalTail<float> normal_tail(float v) {
  const float size = float_of(bits_of(v) & 0x7fffffff);
  const float t = kTailEnd < size ? kTailEnd : size;
  const float head = float_of(bits_of(t) & static_cast<int32_t>(0xfffff000));
  const float h = head * head, l = (t - head) * (t + head);
  const float shifted = h * -0.721347520f + kRounder;
  const float n = shifted - kRounder;
  // ln 2 in two parts, the first of so few bits that its product with n is exact.
  float f = h * -0.5f - n * 0.693145752f;
  f = f - n * 1.42860682e-6f - l * 0.5f;
  float power = 0.00138144672f;
  power = power * f + 0.00836878084f;
  power = power * f + 0.0416683927f;
  power = power * f + 0.166665196f;
  power = power * f + 0.49999994f;
  power = power * f * f + f + 1;
  const float density = power * power_of_two(shifted);
  float above = 0.0040286337f;
  above = above * t + 0.040041402f;
  above = above * t + 0.181477174f;
  above = above * t + 0.435917526f;
  above = above * t + 0.5f;
  float below = 0.0100981463f;
  below = below * t + 0.100376204f;
  below = below * t + 0.464830101f;
  below = below * t + 1.19519401f;
  below = below * t + 1.66972005f;
  below = below * t + 1;
  return {t, density, density * (above / below)};
}

FASTADV_INLINE NormalTail<double> normal_tail(double v) {
  // Phi(-40) is zero in double; a finite limit keeps infinities out of the products.
  const double size = std::abs(v), t = 40 < size ? 40 : size;
  return {t, std::exp(-0.5 * t * t), 0.5 * std::erfc(t * 0.70710678118654752440)};
}

// As precise as results of type T need.
template <typename T>
FASTADV_INLINE NormalTail<acc_t<T>> normal_tail_for(acc_t<T> v) {
  if constexpr (sizeof(T) == 2) {
    return normal_tail_16(v);
  } else {
    return normal_tail(v);
  }
}

// Two functions, called with the same v where both results are needed: a compiler computes what
// they share only once, but vectorises no loop that holds a structure or a reference.
template <typename T>
FASTADV_INLINE acc_t<T> gelu_of(acc_t<T> v) {
  const NormalTail<acc_t<T>> at = normal_tail_for<T>(v);
  // The maximum is one instruction. It turns NaN into 0, but t brings NaN back.
  return (v > 0 ? v : acc_t<T>(0)) - at.t * at.tail;
}

template <typename T>
FASTADV_INLINE acc_t<T> gelu_derivative_of(acc_t<T> v) {
  const NormalTail<acc_t<T>> at = normal_tail_for<T>(v);
  const acc_t<T> s = at.tail - at.t * at.density * acc_t<T>(0.39894228040143267794);
  return v < 0 ? s : 1 - s;
}

// y = gelu(x + bias) for one row. x may be y.
template <typename X, typename T>
FASTADV_INLINE void bias_gelu_row_body(const X* x, const acc_t<T>* bias, int64_t width, T* y) {
#pragma omp simd
  for (int64_t j = 0; j < width; ++j) narrow(gelu_of<T>(widen(x[j]) + bias[j]), y + j);
}

// grad_x = grad * gelu'(x + bias) for one row, added to bias_sum before it is rounded; y as above,
// not written if null.
template <typename T>
FASTADV_INLINE void bias_gelu_backward_row_body(const T* grad, const T* x, const acc_t<T>* bias,
                                                int64_t width, T* grad_x, T* y,
                                                acc_t<T>* bias_sum) {
  if (y == nullptr) {
#pragma omp simd
    for (int64_t j = 0; j < width; ++j) {
      const acc_t<T> g = widen(grad[j]) * gelu_derivative_of<T>(widen(x[j]) + bias[j]);
      bias_sum[j] += g;
      narrow(g, grad_x + j);
    }
    return;
  }
#pragma omp simd
  for (int64_t j = 0; j < width; ++j) {
    const acc_t<T> v = widen(x[j]) + bias[j];
    const acc_t<T> g = widen(grad[j]) * gelu_derivative_of<T>(v);
    bias_sum[j] += g;
    narrow(g, grad_x + j);
    narrow(gelu_of<T>(v), y + j);
  }
}

}  // namespace fastadv
