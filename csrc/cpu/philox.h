// Dropout's random bits: Philox4x32 with 7 rounds, counter-based, the same in every backend.
//
// Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3" (SC 2011).
// fastadv/ops/philox.py says which counter and which bits belong to an element.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>

#include "simd.h"

namespace fastadv {

struct Dropout {
  uint32_t key0 = 0, key1 = 0, site = 0;
  // An element is dropped if its 16 random bits are below this.
  uint32_t threshold = 0;
  double scale = 1;

  bool on() const { return threshold > 0; }
};

// p in [0, 1); seed (1,) int64 on the CPU. Off for p = 0 or without a seed.
Dropout make_dropout(double p, const std::optional<at::Tensor>& seed, int64_t site);

// How many factors dropout_factors writes: it works on 128 columns at a time.
FASTADV_INLINE int64_t dropout_width(int64_t columns) { return (columns + 127) / 128 * 128; }

// factors[c] = the scale where column c of a row is kept, 0 where it is dropped, for columns up to
// dropout_width(columns). Each instruction set has its own function: no compiler finds the widening
// multiplications in a loop written for all of them.
void dropout_factors(const Dropout& dropout, uint32_t row, int64_t columns, float* factors);

// The same, for bodies of FASTADV_SIMD_FUNCTION: one call per row, not inlined.
FASTADV_INLINE void dropout_factors_body(const Dropout& dropout, uint32_t row, int64_t columns,
                                         float* factors) {
  dropout_factors(dropout, row, columns, factors);
}

// `factors` has room for dropout_width(columns) numbers of either kind.
FASTADV_INLINE void dropout_factors_body(const Dropout& dropout, uint32_t row, int64_t columns,
                                         double* factors) {
  float* narrow_factors = reinterpret_cast<float*>(factors) + dropout_width(columns);
  dropout_factors(dropout, row, columns, narrow_factors);
  for (int64_t c = 0; c < columns; ++c) {
    float factor;
    std::memcpy(&factor, narrow_factors + c, sizeof(factor));
    factors[c] = factor != 0 ? dropout.scale : 0;
  }
}

}  // namespace fastadv
