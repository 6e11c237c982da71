// Philox4x32-7 for each instruction set, and an operation that shows the tests its masks.
#include "philox.h"

#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "common.h"

#if defined(FASTADV_AVX512)
#include <immintrin.h>
// GCC's own headers leave vectors undefined on purpose (GCC bug 105593).
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif

namespace fastadv {
namespace {

constexpr int kRounds = 7;
constexpr uint32_t kMultiplier0 = 0xD2511F53u, kMultiplier1 = 0xCD9E8D57u;
constexpr uint32_t kKeyStep0 = 0x9E3779B9u, kKeyStep1 = 0xBB67AE85u;

// All counters of a row share the words (site, 0, row). This is what the first round makes of them,
// and the second round of the result.
struct RowState {
  uint32_t c0, c1;
  uint32_t high0, low0;
  uint32_t key0[kRounds], key1[kRounds];
};

RowState row_state(const Dropout& dropout, uint32_t row) {
  RowState state;
  for (int r = 0; r < kRounds; ++r) {
    state.key0[r] = dropout.key0 + static_cast<uint32_t>(r) * kKeyStep0;
    state.key1[r] = dropout.key1 + static_cast<uint32_t>(r) * kKeyStep1;
  }
  const uint64_t product1 = uint64_t{dropout.site} * kMultiplier1;
  state.c0 = static_cast<uint32_t>(product1 >> 32) ^ row ^ state.key0[0];
  state.c1 = static_cast<uint32_t>(product1);
  const uint64_t product0 = uint64_t{state.c0} * kMultiplier0;
  state.high0 = static_cast<uint32_t>(product0 >> 32) ^ state.key1[1];
  state.low0 = static_cast<uint32_t>(product0);
  return state;
}

void factors_portable(const Dropout& dropout, uint32_t row, int64_t columns, float* factors) {
  const RowState state = row_state(dropout, row);
  const auto scale = static_cast<float>(dropout.scale);
  for (int64_t block = 0; block * 128 < columns; ++block) {
    float* out = factors + block * 128;
    for (int i = 0; i < 16; ++i) {
      const uint64_t first = uint64_t(static_cast<uint32_t>(block * 16 + i)) * kMultiplier0;
      const uint32_t second = static_cast<uint32_t>(first >> 32) ^ state.key1[0];
      const uint64_t product = uint64_t{second} * kMultiplier1;
      uint32_t c0 = static_cast<uint32_t>(product >> 32) ^ state.c1 ^ state.key0[1];
      uint32_t c1 = static_cast<uint32_t>(product);
      uint32_t c2 = state.high0 ^ static_cast<uint32_t>(first), c3 = state.low0;
      for (int r = 2; r < kRounds; ++r) {
        const uint64_t product0 = uint64_t{c0} * kMultiplier0;
        const uint64_t product1 = uint64_t{c2} * kMultiplier1;
        c0 = static_cast<uint32_t>(product1 >> 32) ^ c1 ^ state.key0[r];
        c1 = static_cast<uint32_t>(product1);
        c2 = static_cast<uint32_t>(product0 >> 32) ^ c3 ^ state.key1[r];
        c3 = static_cast<uint32_t>(product0);
      }
      const uint32_t words[4] = {c0, c1, c2, c3};
      for (int j = 0; j < 4; ++j) {
        out[32 * j + i] = (words[j] & 0xffffu) >= dropout.threshold ? scale : 0.0f;
        out[32 * j + 16 + i] = (words[j] >> 16) >= dropout.threshold ? scale : 0.0f;
      }
    }
  }
}

#if defined(FASTADV_AVX512)

// Counters lie in the low halves of 64-bit lanes, the even ones of sixteen in one vector and the
// odd ones in another: a widening multiplication is then one instruction, and what it leaves in the
// high halves does no harm.
struct Words512 {
  __m512i c0, c1, c2, c3;
};

FASTADV_AVX512 inline Words512 words_512(const RowState& s, __m512i counters) {
  const __m512i m0 = _mm512_set1_epi64(kMultiplier0), m1 = _mm512_set1_epi64(kMultiplier1);
  const __m512i first = _mm512_mul_epu32(counters, m0);
  const __m512i second =
      _mm512_xor_si512(_mm512_srli_epi64(first, 32), _mm512_set1_epi64(s.key1[0]));
  Words512 w;
  w.c1 = _mm512_mul_epu32(second, m1);
  w.c0 = _mm512_xor_si512(_mm512_srli_epi64(w.c1, 32), _mm512_set1_epi64(s.c1 ^ s.key0[1]));
  w.c2 = _mm512_xor_si512(first, _mm512_set1_epi64(s.high0));
  w.c3 = _mm512_set1_epi64(s.low0);
  for (int r = 2; r < kRounds; ++r) {
    const __m512i product0 = _mm512_mul_epu32(w.c0, m0), product1 = _mm512_mul_epu32(w.c2, m1);
    // 0x96: the exclusive or of three operands.
    w.c0 = _mm512_ternarylogic_epi64(_mm512_srli_epi64(product1, 32), w.c1,
                                     _mm512_set1_epi64(s.key0[r]), 0x96);
    w.c2 = _mm512_ternarylogic_epi64(_mm512_srli_epi64(product0, 32), w.c3,
                                     _mm512_set1_epi64(s.key1[r]), 0x96);
    w.c1 = product1;
    w.c3 = product0;
  }
  return w;
}

FASTADV_AVX512 inline void store_512(__m512i even, __m512i odd, __m512i threshold, __m512 scale,
                                     float* out) {
  const __m512i words = _mm512_mask_blend_epi32(0xaaaa, even, _mm512_slli_epi64(odd, 32));
  // Bits below the high half do not change which side of threshold << 16 a word is on.
  const __mmask16 low = _mm512_cmpge_epu32_mask(_mm512_slli_epi32(words, 16), threshold);
  const __mmask16 high = _mm512_cmpge_epu32_mask(words, threshold);
  _mm512_storeu_ps(out, _mm512_maskz_mov_ps(low, scale));
  _mm512_storeu_ps(out + 16, _mm512_maskz_mov_ps(high, scale));
}

FASTADV_AVX512 void factors_avx512(const Dropout& dropout, uint32_t row, int64_t columns,
                                   float* factors) {
  const RowState state = row_state(dropout, row);
  const __m512i threshold = _mm512_set1_epi32(static_cast<int>(dropout.threshold << 16));
  const __m512 scale = _mm512_set1_ps(static_cast<float>(dropout.scale));
  const __m512i evens = _mm512_setr_epi64(0, 2, 4, 6, 8, 10, 12, 14);
  for (int64_t block = 0; block * 128 < columns; ++block) {
    const __m512i counters = _mm512_add_epi64(evens, _mm512_set1_epi64(block * 16));
    const Words512 even = words_512(state, counters);
    const Words512 odd = words_512(state, _mm512_add_epi64(counters, _mm512_set1_epi64(1)));
    float* out = factors + block * 128;
    store_512(even.c0, odd.c0, threshold, scale, out);
    store_512(even.c1, odd.c1, threshold, scale, out + 32);
    store_512(even.c2, odd.c2, threshold, scale, out + 64);
    store_512(even.c3, odd.c3, threshold, scale, out + 96);
  }
}

struct Words256 {
  __m256i c0, c1, c2, c3;
};

FASTADV_AVX2 inline Words256 words_256(const RowState& s, __m256i counters) {
  const __m256i m0 = _mm256_set1_epi64x(kMultiplier0), m1 = _mm256_set1_epi64x(kMultiplier1);
  const __m256i first = _mm256_mul_epu32(counters, m0);
  const __m256i second =
      _mm256_xor_si256(_mm256_srli_epi64(first, 32), _mm256_set1_epi64x(s.key1[0]));
  Words256 w;
  w.c1 = _mm256_mul_epu32(second, m1);
  w.c0 = _mm256_xor_si256(_mm256_srli_epi64(w.c1, 32), _mm256_set1_epi64x(s.c1 ^ s.key0[1]));
  w.c2 = _mm256_xor_si256(first, _mm256_set1_epi64x(s.high0));
  w.c3 = _mm256_set1_epi64x(s.low0);
  for (int r = 2; r < kRounds; ++r) {
    const __m256i product0 = _mm256_mul_epu32(w.c0, m0), product1 = _mm256_mul_epu32(w.c2, m1);
    w.c0 = _mm256_xor_si256(_mm256_srli_epi64(product1, 32),
                            _mm256_xor_si256(w.c1, _mm256_set1_epi64x(s.key0[r])));
    w.c2 = _mm256_xor_si256(_mm256_srli_epi64(product0, 32),
                            _mm256_xor_si256(w.c3, _mm256_set1_epi64x(s.key1[r])));
    w.c1 = product1;
    w.c3 = product0;
  }
  return w;
}

FASTADV_AVX2 inline void store_256(__m256i even, __m256i odd, __m256i threshold, __m256 scale,
                                   float* out) {
  const __m256i words = _mm256_blend_epi32(even, _mm256_slli_epi64(odd, 32), 0xaa);
  const __m256i low = _mm256_and_si256(words, _mm256_set1_epi32(0xffff));
  const __m256i high = _mm256_srli_epi32(words, 16);
  const __m256 drop_low = _mm256_castsi256_ps(_mm256_cmpgt_epi32(threshold, low));
  const __m256 drop_high = _mm256_castsi256_ps(_mm256_cmpgt_epi32(threshold, high));
  _mm256_storeu_ps(out, _mm256_andnot_ps(drop_low, scale));
  _mm256_storeu_ps(out + 16, _mm256_andnot_ps(drop_high, scale));
}

FASTADV_AVX2 void factors_avx2(const Dropout& dropout, uint32_t row, int64_t columns,
                               float* factors) {
  const RowState state = row_state(dropout, row);
  const __m256i threshold = _mm256_set1_epi32(static_cast<int>(dropout.threshold));
  const __m256 scale = _mm256_set1_ps(static_cast<float>(dropout.scale));
  const __m256i evens = _mm256_setr_epi64x(0, 2, 4, 6);
  for (int64_t eight = 0; eight * 64 < dropout_width(columns); ++eight) {
    const __m256i counters = _mm256_add_epi64(evens, _mm256_set1_epi64x(eight * 8));
    const Words256 even = words_256(state, counters);
    const Words256 odd = words_256(state, _mm256_add_epi64(counters, _mm256_set1_epi64x(1)));
    float* out = factors + eight / 2 * 128 + eight % 2 * 8;
    store_256(even.c0, odd.c0, threshold, scale, out);
    store_256(even.c1, odd.c1, threshold, scale, out + 32);
    store_256(even.c2, odd.c2, threshold, scale, out + 64);
    store_256(even.c3, odd.c3, threshold, scale, out + 96);
  }
}

#endif

// The factors of every row, as an operation: the tests compare them with the reference.
at::Tensor dropout_factors_cpu(const at::Tensor& seed, int64_t site, const at::Tensor& rows_in,
                               int64_t columns, double p) {
  check_dtype(rows_in, at::kLong, "rows");
  TORCH_CHECK_VALUE(rows_in.dim() == 1, "rows has ", rows_in.dim(), " dimensions, expected 1");
  TORCH_CHECK_VALUE(columns >= 0, "columns is ", columns, ", expected no negative number");
  const Dropout dropout = make_dropout(p, seed, site);
  const at::Tensor rows = rows_in.contiguous();
  at::Tensor result = at::empty({rows.size(0), columns}, rows.options().dtype(at::kFloat));
  const auto* row = rows.const_data_ptr<int64_t>();
  auto* out = result.mutable_data_ptr<float>();
  std::vector<float> factors(dropout_width(columns));
  for (int64_t i = 0; i < rows.size(0); ++i) {
    dropout_factors(dropout, static_cast<uint32_t>(row[i]), columns, factors.data());
    std::copy_n(factors.data(), columns, out + i * columns);
  }
  return result;
}

}  // namespace

void dropout_factors(const Dropout& dropout, uint32_t row, int64_t columns, float* factors) {
#if defined(FASTADV_AVX512)
  if (kCpuLevel == CpuLevel::kAvx512) return factors_avx512(dropout, row, columns, factors);
  if (kCpuLevel == CpuLevel::kAvx2) return factors_avx2(dropout, row, columns, factors);
#endif
  factors_portable(dropout, row, columns, factors);
}

Dropout make_dropout(double p, const std::optional<at::Tensor>& seed, int64_t site) {
  TORCH_CHECK_VALUE(p >= 0 && p < 1, "p is ", p,
                    ", expected a probability of at least 0 and below 1");
  TORCH_CHECK_VALUE(site >= 0 && site <= 0xffffffff, "site is ", site,
                    ", expected a number of 32 bits that is not negative");
  Dropout dropout;
  if (!seed.has_value()) return dropout;
  check_dtype(*seed, at::kLong, "seed");
  check_shape(*seed, {1}, "seed");
  const auto key = static_cast<uint64_t>(*seed->const_data_ptr<int64_t>());
  dropout.key0 = static_cast<uint32_t>(key);
  dropout.key1 = static_cast<uint32_t>(key >> 32);
  dropout.site = static_cast<uint32_t>(site);
  // Ties to even, like Python's round.
  dropout.threshold = static_cast<uint32_t>(std::min(std::nearbyint(p * 65536), 65535.0));
  dropout.scale = 1 / (1 - dropout.threshold / 65536.0);
  return dropout;
}

}  // namespace fastadv

TORCH_LIBRARY_FRAGMENT(fastadv, m) {
  m.def("dropout_factors(Tensor seed, int site, Tensor rows, int columns, float p) -> Tensor");
}

TORCH_LIBRARY_IMPL(fastadv, CPU, m) { m.impl("dropout_factors", &fastadv::dropout_factors_cpu); }
