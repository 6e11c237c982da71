// The exponential function as arithmetic that compilers vectorise.
#pragma once

#include <cmath>

#include "simd.h"

namespace fastadv {

// exp(x) for x <= 88 as 2^n e^f with |f| <= ln(2) / 2, where e^f is a Taylor series. Within 2 units
// in the last place; for 16-bit results, Bits = 16, within 3e-6. Results below the smallest normal
// number become about 1e-38.
template <int Bits = 32>
FASTADV_INLINE float exp_of(float x) {
  // Written so that NaN stays NaN.
  const float clamped = x < -87.0f ? -87.0f : x;
  // Adding 1.5 * 2^23 rounds to an integer and leaves it in the last bits; subtracting it again
  // gives the integer as a float.
  const float magic = 12582912.0f;
  const float shifted = clamped * 1.44269504f + magic;
  const float n = shifted - magic;
  const float f = (clamped - n * 0.693359375f) + n * 2.12194440e-4f;
  float p = 1.0f / 120;
  if constexpr (Bits > 16) {
    p = 1.0f / 5040;
    p = p * f + 1.0f / 720;
    p = p * f + 1.0f / 120;
  }
  p = p * f + 1.0f / 24;
  p = p * f + 1.0f / 6;
  p = p * f + 0.5f;
  p = p * f + 1.0f;
  p = p * f + 1.0f;
  const uint32_t exponent = static_cast<uint32_t>(bits_of(shifted)) << 23;
  return p * float_of(static_cast<int32_t>(exponent + (127u << 23)));
}

template <int Bits = 64>
FASTADV_INLINE double exp_of(double x) {
  return std::exp(x);
}

}  // namespace fastadv
