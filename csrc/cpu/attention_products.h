// The matrix products inside one attention head, by ATen in float32 or float64, or by brgemm in
// bfloat16.
//
// Both give the same functions over a block of at most kQueries queries (rows) and all keys of the
// sequence. Rows of scores are `width` apart: the number of keys, rounded up as the matrix products
// require.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/mm.h>
#include <c10/core/ScalarType.h>

#include <algorithm>
#include <vector>

#include "acc_type.h"
#include "attention_rows.h"
#include "brgemm.h"

namespace fastadv {

constexpr int64_t kQueries = 128;

// Rows of one head within packed tokens.
template <typename T>
struct Rows {
  T* data;
  int64_t stride;
  int64_t count;

  Rows from(int64_t first, int64_t size) const { return {data + first * stride, stride, size}; }
};

// C (m, n) = A (m, k) B (k, n), or C += where `add`; elements of A and B are `a_rows` or `b_rows`
// apart from row to row and `a_columns`, `b_columns` from column to column. PyTorch exports no
// matrix product on pointers.
template <typename Acc>
void multiply(const Acc* a, int64_t a_rows, int64_t a_columns, const Acc* b, int64_t b_rows,
              int64_t b_columns, int64_t m, int64_t n, int64_t k, bool add, Acc* c) {
  const auto options = at::TensorOptions().dtype(c10::CppTypeToScalarType<Acc>::value);
  const auto matrix = [&](const Acc* data, int64_t rows, int64_t columns, int64_t row_stride,
                          int64_t column_stride) {
    return at::from_blob(const_cast<Acc*>(data), {rows, columns}, {row_stride, column_stride},
                         options);
  };
  at::Tensor out = matrix(c, m, n, n, 1);
  const at::Tensor left = matrix(a, m, k, a_rows, a_columns);
  const at::Tensor right = matrix(b, k, n, b_rows, b_columns);
  if (add) {
    out.addmm_(left, right);
  } else {
    at::mm_out(out, left, right);
  }
}

// Operands are widened to the type of the sums first.
template <typename T>
class AtenProducts {
 public:
  using Element = acc_t<T>;
  using Acc = acc_t<T>;

  explicit AtenProducts(int64_t dim) : dim_(dim) {}

  static int64_t width(int64_t keys) { return keys; }

  void set_keys(Rows<const T> k, Rows<const T> v, bool) {
    keys_ = k.count;
    widen(k, k_);
    widen(v, v_);
  }

  void set_queries(Rows<const T> q) { widen(q, q_), queries_ = q.count; }
  void set_grads(Rows<const T> grad) { widen(grad, grad_); }

  // (queries, keys) q k^T, grad v^T, and (queries, dim) p v, ds k.
  void scores(Acc* s) { times_transposed(q_, k_, s); }
  void grad_scores(Acc* dp) { times_transposed(grad_, v_, dp); }
  void mix_values(const Element* p, Acc* out) { times(p, v_, out); }
  void mix_keys(const Element* ds, Acc* dq) { times(ds, k_, dq); }

  // (keys, dim) dv = p^T grad and dk = ds^T q, added where `add`.
  void sum_queries(const Element* p, const Element* ds, bool add, Acc* dv, Acc* dk) {
    multiply<Acc>(p, 1, keys_, grad_.data(), dim_, 1, keys_, dim_, queries_, add, dv);
    multiply<Acc>(ds, 1, keys_, q_.data(), dim_, 1, keys_, dim_, queries_, add, dk);
  }

 private:
  void widen(Rows<const T> rows, std::vector<Acc>& out) {
    out.resize(rows.count * dim_);
    for (int64_t r = 0; r < rows.count; ++r) {
      widen_row(rows.data + r * rows.stride, dim_, out.data() + r * dim_);
    }
  }

  void times_transposed(const std::vector<Acc>& a, const std::vector<Acc>& b, Acc* c) {
    multiply<Acc>(a.data(), dim_, 1, b.data(), 1, dim_, queries_, keys_, dim_, false, c);
  }

  void times(const Acc* a, const std::vector<Acc>& b, Acc* c) {
    multiply<Acc>(a, keys_, 1, b.data(), dim_, 1, queries_, dim_, keys_, false, c);
  }

  int64_t dim_, keys_ = 0, queries_ = 0;
  std::vector<Acc> k_, v_, q_, grad_;
};

#if defined(FASTADV_AVX512)

class BrgemmProducts {
 public:
  using Element = c10::BFloat16;
  using Acc = float;

  explicit BrgemmProducts(int64_t dim) : dim_(dim) {}

  static int64_t width(int64_t keys) { return round_up(keys, kBlockRows); }

  void set_keys(Rows<const Element> k, Rows<const Element> v, bool backward) {
    width_ = width(k.count);
    if (backward) {
      interleave(k, width_, k_);
      transpose(v, v_transposed_);
    } else {
      interleave(v, width_, v_);
    }
    transpose(k, k_transposed_);
  }

  void set_queries(Rows<const Element> q) {
    queries_ = width(q.count);
    q_ = whole_blocks(q, q_rest_);
    q_rows_ = q;
  }

  void set_grads(Rows<const Element> grad) {
    grad_ = whole_blocks(grad, grad_rest_);
    interleave(grad, queries_, grad_pairs_);
    interleave(q_rows_, queries_, q_pairs_);
  }

  void scores(Acc* s) { times(q_, dim_, k_transposed_, width_, s); }
  void grad_scores(Acc* dp) { times(grad_, dim_, v_transposed_, width_, dp); }
  void mix_values(const Element* p, Acc* out) { times(whole(p), width_, v_, dim_, out); }
  void mix_keys(const Element* ds, Acc* dq) { times(whole(ds), width_, k_, dim_, dq); }

  void sum_queries(const Element* p, const Element* ds, bool add, Acc* dv, Acc* dk) {
    times_transposed(p, grad_pairs_, add, dv);
    times_transposed(ds, q_pairs_, add, dk);
  }

 private:
  // The left operand A: full blocks are read in place, a partial last block from a copy that is
  // padded with rows of zeros.
  struct Blocks {
    Rows<const Element> rows;
    const Element* rest;
    int64_t rest_stride;
  };

  Blocks whole(const Element* a) const { return {{a, width_, queries_}, nullptr, 0}; }

  Blocks whole_blocks(Rows<const Element> rows, std::vector<Element>& rest) const {
    const int64_t full = rows.count / kBlockRows * kBlockRows;
    if (full == rows.count) return {rows, nullptr, 0};
    rest.assign(kBlockRows * dim_, Element(0.0f));
    for (int64_t r = full; r < rows.count; ++r) {
      std::copy_n(rows.data + r * rows.stride, dim_, rest.data() + (r - full) * dim_);
    }
    return {{rows.data, rows.stride, full}, rest.data(), dim_};
  }

  void times(const Blocks& a, int64_t depth, const std::vector<uint32_t>& b, int64_t columns,
             Acc* c) {
    for (int64_t row = 0; row < queries_; row += kBlockRows) {
      const bool direct = row < a.rows.count;
      brgemm(kBlockRows, columns, depth, direct ? a.rows.data + row * a.rows.stride : a.rest,
             direct ? a.rows.stride : a.rest_stride, elements(b), columns, c + row * columns,
             columns, false);
    }
  }

  void times_transposed(const Element* a, const std::vector<uint32_t>& b, bool add, Acc* c) {
    pairs_.resize(queries_ / 2 * width_);
    transposed_.resize(queries_ / 2 * width_);
    interleave_rows(a, width_, queries_, width_, pairs_.data(), width_);
    transpose_words(pairs_.data(), width_, queries_ / 2, width_, transposed_.data(), queries_ / 2);
    for (int64_t row = 0; row < width_; row += kBlockRows) {
      brgemm(kBlockRows, dim_, queries_, elements(transposed_) + row * queries_, queries_,
             elements(b), dim_, c + row * dim_, dim_, add);
    }
  }

  // The right operand B (rows, dim) of a matrix product over rows, padded up to `depth` with zeros.
  void interleave(Rows<const Element> rows, int64_t depth, std::vector<uint32_t>& out) {
    out.resize(depth / 2 * dim_);
    interleave_rows(rows.data, rows.stride, rows.count, dim_, out.data(), dim_);
    std::fill(out.begin() + (rows.count + 1) / 2 * dim_, out.end(), 0u);
  }

  // The right operand B (dim, rows) of a matrix product over the head's columns; columns beyond the
  // rows are zeros.
  void transpose(Rows<const Element> rows, std::vector<uint32_t>& out) {
    out.resize(dim_ / 2 * width_);
    if (rows.count < width_) std::fill(out.begin(), out.end(), 0u);
    for (int64_t r = 0; r < rows.count; r += 16) {
      // Copied, because rows with an odd stride are not aligned to whole words.
      words_.resize(16 * dim_ / 2);
      const int64_t count = std::min<int64_t>(16, rows.count - r);
      for (int64_t i = 0; i < count; ++i) {
        std::memcpy(words_.data() + i * dim_ / 2, rows.data + (r + i) * rows.stride,
                    dim_ * sizeof(Element));
      }
      transpose_words(words_.data(), dim_ / 2, count, dim_ / 2, out.data() + r, width_);
    }
  }

  static const Element* elements(const std::vector<uint32_t>& words) {
    return reinterpret_cast<const Element*>(words.data());
  }

  int64_t dim_, width_ = 0, queries_ = 0;
  Rows<const Element> q_rows_{};
  Blocks q_{}, grad_{};
  std::vector<Element> q_rest_, grad_rest_;
  std::vector<uint32_t> k_, v_, k_transposed_, v_transposed_, q_pairs_, grad_pairs_;
  std::vector<uint32_t> words_, pairs_, transposed_;
};

#endif

}  // namespace fastadv
