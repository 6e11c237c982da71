// What attention does to rows of scores, whichever way the matrix products are computed.
#pragma once

#include <cstdint>
#include <limits>

#include "exp.h"
#include "simd.h"

namespace fastadv {

// Numbers are rounded in separate loops: a compiler halves the vectors of loops that also write
// 16-bit numbers. Loops run over whole rows of scores, `width` columns: the remainder after the
// last full vector of `keys` columns would cost as much as several vectors.

// Turns a row of scores into exp(scale * (score - largest)), and writes it to p, times the dropout
// factors where there are any; columns from `keys` to `width` become 0. totals gets the largest
// scaled score and the sum before dropout.
template <typename T, typename Acc>
FASTADV_INLINE void softmax_row_body(Acc* scores, const Acc* factors, int64_t keys, int64_t width,
                                     Acc scale, T* p, Acc* totals) {
  for (int64_t j = keys; j < width; ++j) scores[j] = -std::numeric_limits<Acc>::infinity();
  Acc largest = -std::numeric_limits<Acc>::infinity();
#pragma omp simd reduction(max : largest)
  for (int64_t j = 0; j < width; ++j) largest = scores[j] > largest ? scores[j] : largest;
  Acc sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t j = 0; j < width; ++j) {
    scores[j] = exp_of<8 * sizeof(T)>((scores[j] - largest) * scale);
    sum += scores[j];
  }
  if (factors == nullptr) {
#pragma omp simd
    for (int64_t j = 0; j < width; ++j) narrow(scores[j], p + j);
  } else {
#pragma omp simd
    for (int64_t j = 0; j < width; ++j) narrow(scores[j] * factors[j], p + j);
  }
  for (int64_t j = keys; j < width; ++j) narrow(Acc(0), p + j);
  totals[0] = largest * scale;
  totals[1] = sum;
}
FASTADV_SIMD_FUNCTION(softmax_row)

// Backward of a row: from scores and dp = grad . v computes the probabilities after dropout and ds
// = p (dp - delta) scale; columns from `keys` to `width` become 0. Overwrites scores and dp.
template <typename T, typename Acc>
FASTADV_INLINE void softmax_row_backward_body(Acc* scores, Acc* dp, const Acc* factors,
                                              int64_t keys, int64_t width, Acc scale, Acc lse,
                                              Acc delta, T* p, T* ds) {
  if (factors == nullptr) {
#pragma omp simd
    for (int64_t j = 0; j < width; ++j) {
      scores[j] = exp_of<8 * sizeof(T)>(scores[j] * scale - lse);
      dp[j] = scores[j] * (dp[j] - delta) * scale;
    }
  } else {
#pragma omp simd
    for (int64_t j = 0; j < width; ++j) {
      const Acc probability = exp_of<8 * sizeof(T)>(scores[j] * scale - lse);
      scores[j] = probability * factors[j];
      dp[j] = probability * (dp[j] * factors[j] - delta) * scale;
    }
  }
#pragma omp simd
  for (int64_t j = 0; j < width; ++j) narrow(scores[j], p + j);
#pragma omp simd
  for (int64_t j = 0; j < width; ++j) narrow(dp[j], ds + j);
  for (int64_t j = keys; j < width; ++j) {
    narrow(Acc(0), p + j);
    narrow(Acc(0), ds + j);
  }
}
FASTADV_SIMD_FUNCTION(softmax_row_backward)

template <typename T, typename Acc>
FASTADV_INLINE void scale_row_body(const Acc* row, Acc factor, int64_t width, T* out) {
#pragma omp simd
  for (int64_t j = 0; j < width; ++j) narrow(row[j] * factor, out + j);
}
FASTADV_SIMD_FUNCTION(scale_row)

template <typename T, typename Acc>
FASTADV_INLINE void dot_row_body(const T* a, const T* b, int64_t width, Acc* result) {
  Acc sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t j = 0; j < width; ++j) sum += widen(a[j]) * widen(b[j]);
  *result = sum;
}
FASTADV_SIMD_FUNCTION(dot_row)

template <typename T, typename Acc>
FASTADV_INLINE void widen_row_body(const T* row, int64_t width, Acc* out) {
#pragma omp simd
  for (int64_t j = 0; j < width; ++j) out[j] = widen(row[j]);
}
FASTADV_SIMD_FUNCTION(widen_row)

}  // namespace fastadv
