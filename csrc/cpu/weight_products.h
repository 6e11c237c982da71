// Blocked bfloat16 matrix products with weights, and the layouts of their operands: linear.cpp uses
// them where the processor can multiply bfloat16 matrices.
#pragma once

#include <ATen/Parallel.h>

#include <algorithm>
#include <numeric>
#include <vector>

#include "block_pool.h"
#include "brgemm.h"
#include "common.h"
#include "simd.h"

namespace fastadv {

using c10::BFloat16;

// Whether a matrix product over `depth` with bfloat16 operands goes through brgemm; the depth must
// be even, because B holds pairs of rows.
inline bool packs(at::ScalarType dtype, int64_t depth) {
  return dtype == at::kBFloat16 && depth % 2 == 0 && depth > 0 && has_brgemm();
}

// Elements of the left operand that stay in the second-level cache next to a panel.
constexpr int64_t kCachedOperand = int64_t{1} << 20;

// Columns of B that are worked on together: depth x width elements stay in the second-level cache.
inline int64_t panel_width(int64_t depth) { return depth <= 1024 ? 256 : 128; }

template <typename T>
FASTADV_INLINE void add_bias_row_body(const float* sum, const float* bias, int64_t width, T* out) {
#pragma omp simd
  for (int64_t j = 0; j < width; ++j) narrow(sum[j] + bias[j], out + j);
}
FASTADV_SIMD_FUNCTION(add_bias_row)

template <typename T>
FASTADV_INLINE void round_row_body(const float* sum, int64_t width, T* out) {
#pragma omp simd
  for (int64_t j = 0; j < width; ++j) narrow(sum[j], out + j);
}
FASTADV_SIMD_FUNCTION(round_row)

template <typename T>
FASTADV_INLINE void square_sum_body(const T* x, int64_t count, T* sum) {
  T total = 0;
#pragma omp simd reduction(+ : total)
  for (int64_t j = 0; j < count; ++j) total += x[j] * x[j];
  *sum = total;
}
FASTADV_SIMD_FUNCTION(square_sum)

#if defined(FASTADV_AVX512)

// Rows of a weight that are laid out together.
constexpr int64_t kPackRows = 16;

// Both layouts' part of a weight's (n, k) rows [row, row + rows), which `low` holds. Forward:
// panels of B, (k, n) = weight[n][k], so words of row n become a column of words; backward: panels
// of (n, k) = weight[n][k]. `row` is a multiple of kPackRows, and so is `rows` except at the end.
inline void pack_rows(const BFloat16* low, int64_t n, int64_t k, int64_t row, int64_t rows,
                      uint32_t* forward, uint32_t* backward) {
  const int64_t width = panel_width(k), back_width = panel_width(n);
  const int64_t panel = row / width * width, columns = std::min(width, n - panel);
  const auto* words = reinterpret_cast<const uint32_t*>(low);
  uint32_t* to = forward + panel * (k / 2) + (row - panel);
  if (rows % 16 == 0 && k % 32 == 0 && is_line(to, columns)) {
    stream_transposed(words, k / 2, rows, k / 2, to, columns);
  } else {
    transpose_words(words, k / 2, rows, k / 2, to, columns);
  }
  for (int64_t left = 0; left < k; left += back_width) {
    const int64_t wide = std::min(back_width, k - left);
    to = backward + left * (n / 2) + row / 2 * wide;
    if (is_line(to, wide)) {
      interleave_rows<Store::kStreamed>(low + left, k, rows, wide, to, wide);
    } else {
      interleave_rows(low + left, k, rows, wide, to, wide);
    }
  }
}

// Both layouts of a weight (n, k), in one pass over it.
inline void pack_weight(const float* weight, int64_t n, int64_t k, uint32_t* forward,
                        uint32_t* backward) {
  at::parallel_for(0, ceil_div(n, kPackRows), 1, [&](int64_t first, int64_t last) {
    std::vector<BFloat16> low(kPackRows * k);
    for (int64_t row = first * kPackRows; row < std::min(n, last * kPackRows); row += kPackRows) {
      const int64_t rows = std::min(kPackRows, n - row);
      round_row(weight + row * k, rows * k, low.data());
      pack_rows(low.data(), n, k, row, rows, forward, backward);
    }
    // Streamed stores must be visible before other threads read them.
    _mm_sfence();
  });
}

// y = x B by blocks of rows and panels; finish(row, rows, column, columns, sums) gets the sums of
// every block, with rows `columns` apart. The outer loop runs over panels, so that one stays in
// cache. Threads divide the rows where there are many; where x itself stays in cache they divide
// the panels (halves of them, for evenness), so that each weight is read from memory by one thread
// only.
template <typename Finish>
void product(const BFloat16* x, int64_t rows, int64_t depth, const BFloat16* packed, int64_t n,
             const Finish& finish) {
  const int64_t width = panel_width(depth), panels = ceil_div(n, width);
  const int64_t blocks = ceil_div(rows, kBlockRows);
  const auto run = [&](int64_t panel, int64_t first, int64_t last, float* sums,
                       std::vector<BFloat16>& rest) {
    const int64_t column = panel * width, columns = std::min(width, n - column);
    for (int64_t b = first; b < last; ++b) {
      const int64_t row = b * kBlockRows, count = std::min(kBlockRows, rows - row);
      const BFloat16* a = x + row * depth;
      if (count < kBlockRows) {
        rest.assign(kBlockRows * depth, BFloat16(0.0f));
        std::copy_n(a, count * depth, rest.data());
        a = rest.data();
      }
      brgemm(kBlockRows, columns, depth, a, depth, packed + column * depth, columns, sums, columns,
             false);
      finish(row, count, column, columns, sums);
    }
  };
  const bool by_rows = rows * depth > kCachedOperand;
  const int64_t half = ceil_div(blocks, 2);
  at::parallel_for(0, by_rows ? blocks : 2 * panels, 1, [&](int64_t first, int64_t last) {
    const BrgemmScope scope;
    std::vector<float> sums(kBlockRows * width);
    std::vector<BFloat16> rest;
    if (by_rows) {
      for (int64_t p = 0; p < panels; ++p) run(p, first, last, sums.data(), rest);
      return;
    }
    for (int64_t task = first; task < last; ++task) {
      run(task / 2, task % 2 * half, task % 2 == 0 ? half : blocks, sums.data(), rest);
    }
  });
}

// Tokens that one call sums over. Operands of weight gradients are laid out in chunks of this many.
constexpr int64_t kChunk = 512;
// Tokens between the rows of a transposed chunk: with a power of two the rows would share few cache
// sets.
constexpr int64_t kChunkStride = kChunk + 32;
// A task's part of the result: its operands of one chunk stay in the second-level cache.
constexpr int64_t kTaskRows = 512, kTaskColumns = 768, kPanel = 256;
// Columns transposed together.
constexpr int64_t kStrip = 64;

// Columns [column, column + wide) of g's tokens [begin, end), transposed: (wide, kChunkStride),
// with zeros up to a multiple of 32 tokens.
inline void transpose_chunk(const BFloat16* g, int64_t n, int64_t begin, int64_t end,
                            int64_t column, int64_t wide, BFloat16* out) {
  uint32_t pairs[16 * kStrip];
  for (int64_t strip = 0; strip < wide; strip += kStrip) {
    const int64_t columns = std::min(kStrip, wide - strip);
    auto* words = reinterpret_cast<uint32_t*>(out + strip * kChunkStride);
    for (int64_t row = begin; row < end; row += 32, words += 16) {
      const int64_t count = std::min<int64_t>(32, end - row);
      if (count < 32) std::fill(std::begin(pairs), std::end(pairs), 0u);
      interleave_rows(g + row * n + column + strip, n, count, columns, pairs, kStrip);
      transpose_words(pairs, kStrip, 16, columns, words, kChunkStride / 2);
    }
  }
}

// x (rows, k) as (chunks, panels, kChunk / 2, kPanel) words, with zeros up to a multiple of 32
// tokens.
inline void interleave_chunks(const BFloat16* x, int64_t rows, int64_t k, BFloat16* out) {
  const int64_t blocks = ceil_div(rows, 32);
  at::parallel_for(0, blocks, 1, [&](int64_t first, int64_t last) {
    for (int64_t block = first; block < last; ++block) {
      const int64_t row = block * 32, count = std::min<int64_t>(32, rows - row);
      auto* chunk = reinterpret_cast<uint32_t*>(out + row / kChunk * kChunk * k);
      for (int64_t panel = 0; panel < k; panel += kPanel) {
        const int64_t wide = std::min(kPanel, k - panel);
        uint32_t* to = chunk + panel * (kChunk / 2) + row % kChunk / 2 * wide;
        interleave_rows(x + row * k + panel, k, count, wide, to, wide);
        std::fill(to + (count + 1) / 2 * wide, to + 16 * wide, 0u);
      }
    }
  });
}

// grad_weight (n, k) = g^T x, summed over tokens in a fixed order; squares, if given, is the sum of
// its squares, taken while a block is still in the first-level cache.
inline void weight_gradient(const BFloat16* g, const BFloat16* x, int64_t rows, int64_t n,
                            int64_t k, float* grad_weight, double* squares) {
  const int64_t chunks = ceil_div(rows, kChunk);
  const at::Tensor paired = pooled_empty({chunks * k * kChunk}, at::kBFloat16);
  const auto* b = paired.const_data_ptr<BFloat16>();
  interleave_chunks(x, rows, k, paired.mutable_data_ptr<BFloat16>());
  // An even number of tasks, so that two threads have equal work.
  const int64_t task_rows = round_up(ceil_div(n, 2 * ceil_div(n, kTaskRows)), kBlockRows);
  const int64_t across = ceil_div(k, kTaskColumns), tasks = ceil_div(n, task_rows) * across;
  std::vector<double> sums(tasks, 0.0);
  at::parallel_for(0, tasks, 1, [&](int64_t first, int64_t last) {
    const BrgemmScope scope;
    std::vector<BFloat16> a(task_rows * kChunkStride);
    for (int64_t item = first * chunks; item < last * chunks; ++item) {
      const int64_t task = item / chunks, chunk = item % chunks;
      const int64_t top = task / across * task_rows, left = task % across * kTaskColumns;
      const int64_t bottom = std::min(n, top + task_rows), right = std::min(k, left + kTaskColumns);
      const int64_t begin = chunk * kChunk, end = std::min(rows, begin + kChunk);
      transpose_chunk(g, n, begin, end, top, bottom - top, a.data());
      for (int64_t row = top; row < bottom; row += kBlockRows) {
        for (int64_t column = left; column < right; column += kPanel) {
          const int64_t columns = std::min(kPanel, k - column);
          brgemm(std::min(kBlockRows, n - row), columns, round_up(end - begin, 32),
                 a.data() + (row - top) * kChunkStride, kChunkStride,
                 b + (chunk * k + column) * kChunk, columns, grad_weight + row * k + column, k,
                 chunk > 0);
          if (squares == nullptr || chunk + 1 < chunks) continue;
          for (int64_t r = row; r < std::min(bottom, row + kBlockRows); ++r) {
            float sum;
            square_sum(static_cast<const float*>(grad_weight + r * k + column), columns, &sum);
            sums[task] += sum;
          }
        }
      }
    }
  });
  if (squares != nullptr) *squares = std::accumulate(sums.begin(), sums.end(), 0.0);
}

#endif

}  // namespace fastadv
