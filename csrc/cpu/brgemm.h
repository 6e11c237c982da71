// bfloat16 matrix products of blocks through oneDNN (AMX, else AVX512_BF16), and the layouts that
// they read.
//
// A is row-major; B is interleaved in pairs of rows ("VNNI"): element (k, n) of a K x N matrix is
// at ((k / 2) * N + n) * 2 + k % 2, so that a pair is one 32-bit word. All conversions below are
// moves and transpositions of such words.
#pragma once

#include <ATen/native/CPUBlas.h>
#include <c10/util/BFloat16.h>

#include <cstdint>
#include <cstring>

#include "simd.h"

#if defined(FASTADV_AVX512)
#include <immintrin.h>
#endif

namespace fastadv {

// Rows of A in one call: the same number in every call, because oneDNN compiles a kernel for each.
constexpr int64_t kBlockRows = 32;

// C (rows, n) float32 = A (rows, k) B (k, n), or C += where `add`.
inline void brgemm(int64_t rows, int64_t n, int64_t k, const c10::BFloat16* a, int64_t lda,
                   const c10::BFloat16* b, int64_t ldb, float* c, int64_t ldc, bool add) {
  at::native::cpublas::brgemm(rows, n, k, lda, ldb, ldc, add, a, b, c, true);
}

// Whether brgemm may be called: the processor can multiply bfloat16 matrices, and neither
// FASTADV_CPU_LEVEL nor a setting of oneDNN forbids it.
bool has_brgemm();

// Frees the tile state of a thread at the end of a parallel region.
struct BrgemmScope {
  ~BrgemmScope() { at::native::cpublas::brgemm_release(); }
};

inline int64_t round_up(int64_t value, int64_t unit) { return (value + unit - 1) / unit * unit; }

#if defined(FASTADV_AVX512)

// How results are stored: through the caches or, a whole line at a time, past them to memory, which
// saves reading the line first. Lines begin at multiples of 64 bytes.
enum class Store { kCached, kStreamed };

template <Store kStore>
FASTADV_AVX512 inline void store_line(uint32_t* out, __m512i words) {
  if constexpr (kStore == Store::kStreamed) {
    _mm512_stream_si512(reinterpret_cast<__m512i*>(out), words);
  } else {
    _mm512_storeu_si512(out, words);
  }
}

inline bool is_line(const uint32_t* out, int64_t ldo) {
  return reinterpret_cast<uintptr_t>(out) % 64 == 0 && ldo % 16 == 0;
}

// out[j * ldo + i] = in[i * ldi + j] of 32-bit words, i < 16, j < 16.
template <Store kStore = Store::kCached>
FASTADV_AVX512 inline void transpose_16x16(const uint32_t* in, int64_t ldi, uint32_t* out,
                                           int64_t ldo) {
  __m512i r[16], t[16];
  for (int i = 0; i < 16; ++i) r[i] = _mm512_loadu_si512(in + i * ldi);
  for (int i = 0; i < 8; ++i) {
    t[2 * i] = _mm512_unpacklo_epi32(r[2 * i], r[2 * i + 1]);
    t[2 * i + 1] = _mm512_unpackhi_epi32(r[2 * i], r[2 * i + 1]);
  }
  for (int i = 0; i < 4; ++i) {
    r[4 * i] = _mm512_unpacklo_epi64(t[4 * i], t[4 * i + 2]);
    r[4 * i + 1] = _mm512_unpackhi_epi64(t[4 * i], t[4 * i + 2]);
    r[4 * i + 2] = _mm512_unpacklo_epi64(t[4 * i + 1], t[4 * i + 3]);
    r[4 * i + 3] = _mm512_unpackhi_epi64(t[4 * i + 1], t[4 * i + 3]);
  }
  for (int i = 0; i < 4; ++i) {
    t[i] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0x88);
    t[i + 4] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0xdd);
    t[i + 8] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0x88);
    t[i + 12] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0xdd);
  }
  for (int i = 0; i < 4; ++i) {
    r[i] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0x88);
    r[i + 4] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0x88);
    r[i + 8] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0xdd);
    r[i + 12] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0xdd);
  }
  for (int j = 0; j < 16; ++j) store_line<kStore>(out + j * ldo, r[j]);
}

// The same for any size.
inline void transpose_words(const uint32_t* in, int64_t ldi, int64_t rows, int64_t columns,
                            uint32_t* out, int64_t ldo) {
  const int64_t whole_rows = rows / 16 * 16, whole_columns = columns / 16 * 16;
  for (int64_t i = 0; i < whole_rows; i += 16) {
    for (int64_t j = 0; j < whole_columns; j += 16) {
      transpose_16x16(in + i * ldi + j, ldi, out + j * ldo + i, ldo);
    }
  }
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t j = i < whole_rows ? whole_columns : 0; j < columns; ++j) {
      out[j * ldo + i] = in[i * ldi + j];
    }
  }
}

// The same past the caches: rows and columns are multiples of 16, and `out` is_line.
inline void stream_transposed(const uint32_t* in, int64_t ldi, int64_t rows, int64_t columns,
                              uint32_t* out, int64_t ldo) {
  // Neighbouring lines are written one after the other.
  for (int64_t j = 0; j < columns; j += 16) {
    for (int64_t i = 0; i < rows; i += 16) {
      transpose_16x16<Store::kStreamed>(in + i * ldi + j, ldi, out + j * ldo + i, ldo);
    }
  }
}

// The right operand B of a matrix product, from row-major x (rows, columns): pairs of rows are
// interleaved, an odd last row with zeros. `out` holds round_up(rows, 2) / 2 rows of `columns`
// words, ldo words apart.
template <Store kStore = Store::kCached>
FASTADV_AVX512 inline void interleave_rows(const c10::BFloat16* x, int64_t ldx, int64_t rows,
                                           int64_t columns, uint32_t* out, int64_t ldo) {
  const __m512i low = _mm512_setr_epi32(0, 1, 2, 3, 8, 9, 10, 11, 4, 5, 6, 7, 12, 13, 14, 15);
  for (int64_t i = 0; i < rows; i += 2) {
    const auto* even = reinterpret_cast<const uint16_t*>(x + i * ldx);
    const auto* odd = reinterpret_cast<const uint16_t*>(x + (i + 1) * ldx);
    const bool pair = i + 1 < rows;
    uint32_t* to = out + i / 2 * ldo;
    int64_t j = 0;
    for (; j + 16 <= columns; j += 16) {
      const __m256i a = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(even + j));
      const __m256i b = pair ? _mm256_loadu_si256(reinterpret_cast<const __m256i*>(odd + j))
                             : _mm256_setzero_si256();
      const __m512i words = _mm512_inserti64x4(_mm512_castsi256_si512(_mm256_unpacklo_epi16(a, b)),
                                               _mm256_unpackhi_epi16(a, b), 1);
      store_line<kStore>(to + j, _mm512_permutexvar_epi32(low, words));
    }
    for (; j < columns; ++j) to[j] = even[j] | (pair ? uint32_t{odd[j]} << 16 : 0u);
  }
}

#endif

}  // namespace fastadv
