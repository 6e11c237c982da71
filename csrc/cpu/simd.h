// Number formats and the run-time choice of instruction set for the CPU kernels.
//
// The conversions are bit arithmetic without branches, because that is what a compiler can
// vectorise for every instruction set; the library functions for float16 are scalar calls.
#pragma once

#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

#include <cstdint>
#include <cstring>

#include "acc_type.h"
#include "cpu_features.h"

#define FASTADV_INLINE inline __attribute__((always_inline))

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define FASTADV_AVX512 \
  __attribute__((      \
      target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,bmi2,prefer-vector-width=512")))
#define FASTADV_AVX2 __attribute__((target("avx2,fma,bmi2")))
#elif defined(__x86_64__) && defined(__clang__)
#define FASTADV_AVX512 __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,bmi2")))
#define FASTADV_AVX2 __attribute__((target("avx2,fma,bmi2")))
#endif

// Compiles NAME_body once for each instruction set and defines NAME, which picks one at run time.
// The body must be FASTADV_INLINE and must not call anything that is not.
#if defined(FASTADV_AVX512)
#define FASTADV_SIMD_FUNCTION(NAME)              \
  template <typename... Args>                    \
  FASTADV_AVX512 void NAME##_avx512(Args... a) { \
    NAME##_body(a...);                           \
  }                                              \
  template <typename... Args>                    \
  FASTADV_AVX2 void NAME##_avx2(Args... a) {     \
    NAME##_body(a...);                           \
  }                                              \
  template <typename... Args>                    \
  void NAME##_portable(Args... a) {              \
    NAME##_body(a...);                           \
  }                                              \
  template <typename... Args>                    \
  inline void NAME(Args... a) {                  \
    switch (kCpuLevel) {                         \
      case CpuLevel::kAvx512:                    \
        return NAME##_avx512(a...);              \
      case CpuLevel::kAvx2:                      \
        return NAME##_avx2(a...);                \
      default:                                   \
        return NAME##_portable(a...);            \
    }                                            \
  }
#else
#define FASTADV_SIMD_FUNCTION(NAME) \
  template <typename... Args>       \
  inline void NAME(Args... a) {     \
    NAME##_body(a...);              \
  }
#endif

namespace fastadv {

// Signed integers throughout: AVX2 compares no others.
FASTADV_INLINE int32_t bits_of(float value) {
  int32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  return bits;
}

FASTADV_INLINE float float_of(int32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

FASTADV_INLINE float widen(float value) { return value; }
FASTADV_INLINE double widen(double value) { return value; }
FASTADV_INLINE float widen(c10::BFloat16 value) {
  return float_of(static_cast<int32_t>(static_cast<uint32_t>(value.x) << 16));
}
FASTADV_INLINE float widen(c10::Half value) {
  const int32_t bits = value.x;
  const int32_t sign = static_cast<int32_t>(static_cast<uint32_t>(bits & 0x8000) << 16);
  const int32_t magnitude = (bits & 0x7fff) << 13;
  const int32_t rebias = 112 << 23;  // 127 - 15
  const int32_t normal = magnitude + rebias + (magnitude >= 0x0f800000 ? rebias : 0);
  // A subnormal gets the leading one that it lacks, which the subtraction takes away again.
  const int32_t one = 113 << 23;
  const int32_t subnormal = bits_of(float_of(magnitude + one) - float_of(one));
  return float_of(sign | (magnitude < 0x00800000 ? subnormal : normal));
}

// Round to nearest, ties to even; NaN stays NaN.
FASTADV_INLINE void narrow(float value, float* out) { *out = value; }
FASTADV_INLINE void narrow(double value, double* out) { *out = value; }
FASTADV_INLINE void narrow(float value, c10::BFloat16* out) {
  const uint32_t bits = static_cast<uint32_t>(bits_of(value));
  const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  const bool nan = static_cast<int32_t>(bits & 0x7fffffffu) > 0x7f800000;
  out->x = static_cast<uint16_t>(nan ? 0x7fc0u : rounded);
}
FASTADV_INLINE void narrow(float value, c10::Half* out) {
  const int32_t bits = bits_of(value);
  const int32_t magnitude = bits & 0x7fffffff;
  const int32_t normal = (magnitude - (112 << 23) + 0xfff + ((magnitude >> 13) & 1)) >> 13;
  // Adding 2^-1 puts a subnormal's last bit at the end of the float32 mantissa: the adder rounds.
  const int32_t half = 126 << 23;
  const int32_t subnormal = bits_of(float_of(magnitude) + float_of(half)) - half;
  const int32_t special = magnitude > 0x7f800000 ? 0x7e00 : 0x7c00;
  const int32_t finite = magnitude < (113 << 23) ? subnormal : normal;
  const int32_t result = magnitude >= (143 << 23) ? special : finite;
  out->x = static_cast<uint16_t>(((bits >> 16) & 0x8000) | result);
}

}  // namespace fastadv
