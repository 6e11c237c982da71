// Layer normalisation of one row, forward and backward, in loops that a compiler vectorises.
//
// T is the type of the matrix products, Acc the type of sums and of the residual stream. A row is a
// few kilobytes: the loops after the first find it in the first-level cache.
#pragma once

#include <cmath>

#include "simd.h"

namespace fastadv {

// z = (x + bias) * factors + residual.
template <typename T, typename Acc>
FASTADV_INLINE void dropout_add_row_body(const T* x, const Acc* bias, const Acc* factors,
                                         const Acc* residual, int64_t width, Acc* z) {
#pragma omp simd
  for (int64_t j = 0; j < width; ++j) z[j] = (widen(x[j]) + bias[j]) * factors[j] + residual[j];
}

// Mean of z and 1 / sqrt(var + eps), into stats[0] and stats[1].
template <typename Acc>
FASTADV_INLINE void row_stats_body(const Acc* z, int64_t width, Acc eps, Acc* stats) {
  Acc sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t j = 0; j < width; ++j) sum += z[j];
  const Acc mean = sum / static_cast<Acc>(width);
  // Deviations from the mean: the plain sum of squares cancels where the mean is far from zero.
  Acc squares = 0;
#pragma omp simd reduction(+ : squares)
  for (int64_t j = 0; j < width; ++j) squares += (z[j] - mean) * (z[j] - mean);
  stats[0] = mean;
  stats[1] = 1 / std::sqrt(squares / static_cast<Acc>(width) + eps);
}

// y = (z - mean) / std * gain + beta. z may be y.
template <typename Acc>
FASTADV_INLINE void normalize_row_body(const Acc* z, const Acc* stats, const Acc* gain,
                                       const Acc* beta, int64_t width, Acc* y) {
  const Acc mean = stats[0], inverse = stats[1];
#pragma omp simd
  for (int64_t j = 0; j < width; ++j) y[j] = (z[j] - mean) * inverse * gain[j] + beta[j];
}

template <typename Acc, typename T>
FASTADV_INLINE void narrow_row_body(const Acc* from, int64_t width, T* to) {
#pragma omp simd
  for (int64_t j = 0; j < width; ++j) narrow(from[j], to + j);
}

template <typename T, typename Acc>
FASTADV_INLINE void add_widened_row_body(const Acc* a, const T* b, int64_t width, Acc* sum) {
#pragma omp simd
  for (int64_t j = 0; j < width; ++j) sum[j] = a[j] + widen(b[j]);
}

template <typename Acc>
FASTADV_INLINE void multiply_row_body(const Acc* a, const Acc* b, int64_t width, Acc* product) {
#pragma omp simd
  for (int64_t j = 0; j < width; ++j) product[j] = a[j] * b[j];
}

// The first half of the backward: with n = (z - mean) / std, adds grad * n to gain_sum and grad to
// beta_sum, and sets means[0] and means[1] to the means of grad * gain and of grad * gain * n.
template <typename T, typename Acc>
FASTADV_INLINE void layer_norm_grad_sums_body(const Acc* grad, const T* z, const Acc* stats,
                                              const Acc* gain, int64_t width, Acc* gain_sum,
                                              Acc* beta_sum, Acc* means) {
  const Acc mean = stats[0], inverse = stats[1];
  Acc first = 0, second = 0;
#pragma omp simd reduction(+ : first, second)
  for (int64_t j = 0; j < width; ++j) {
    const Acc n = (widen(z[j]) - mean) * inverse;
    const Acc scaled = grad[j] * gain[j];
    gain_sum[j] += grad[j] * n;
    beta_sum[j] += grad[j];
    first += scaled;
    second += scaled * n;
  }
  means[0] = first / static_cast<Acc>(width);
  means[1] = second / static_cast<Acc>(width);
}

// The second half: grad_z, the gradient of z, is (grad * gain - means[0] - n * means[1]) / std.
// grad_z may be grad.
template <typename T, typename Acc>
FASTADV_INLINE void layer_norm_grad_row_body(const Acc* grad, const T* z, const Acc* stats,
                                             const Acc* gain, const Acc* means, int64_t width,
                                             Acc* grad_z) {
  const Acc mean = stats[0], inverse = stats[1], first = means[0], second = means[1];
#pragma omp simd
  for (int64_t j = 0; j < width; ++j) {
    const Acc n = (widen(z[j]) - mean) * inverse;
    grad_z[j] = inverse * (grad[j] * gain[j] - first - n * second);
  }
}

// The gradient of x in dropout_add_row_body, and its sum for the bias, before it is rounded.
template <typename T, typename Acc>
FASTADV_INLINE void dropout_grad_row_body(const Acc* grad_z, const Acc* factors, int64_t width,
                                          T* grad_x, Acc* bias_sum) {
#pragma omp simd
  for (int64_t j = 0; j < width; ++j) {
    const Acc g = grad_z[j] * factors[j];
    bias_sum[j] += g;
    narrow(g, grad_x + j);
  }
}

}  // namespace fastadv
