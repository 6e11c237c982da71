// Self-attention within each sequence of packed tokens: schema and CPU kernels.
//
// A task is one head of one sequence. The scores of a block of queries over all keys fit in cache,
// so the softmax needs no running maximum.
#include <ATen/Dispatch.h>
#include <ATen/core/Tensor.h>
#include <torch/library.h>

#include <cmath>
#include <type_traits>
#include <vector>

#include "common.h"
#include "cpu/attention_products.h"
#include "cpu/philox.h"
#include "cpu/serial_matmul.h"

namespace fastadv {
namespace {

// The packed tensors of a call, (tokens, 3 hidden) or (tokens, hidden), and where a task's rows
// are.
struct Packed {
  const int32_t* cu_seqlens;
  int64_t batch, tokens, heads, dim;

  int64_t hidden() const { return heads * dim; }

  // The head's rows of part 0, 1 or 2 of qkv.
  template <typename T>
  Rows<T> of_qkv(T* qkv, int64_t item, int part) const {
    const int64_t b = item % batch, head = item / batch;
    return {qkv + cu_seqlens[b] * 3 * hidden() + part * hidden() + head * dim, 3 * hidden(),
            cu_seqlens[b + 1] - cu_seqlens[b]};
  }

  template <typename T>
  Rows<T> of_out(T* out, int64_t item) const {
    const int64_t b = item % batch, head = item / batch;
    return {out + cu_seqlens[b] * hidden() + head * dim, hidden(),
            cu_seqlens[b + 1] - cu_seqlens[b]};
  }

  // The index of (token, head) of the sequence's first token; its other tokens are `heads` apart.
  int64_t first(int64_t item) const { return cu_seqlens[item % batch] * heads + item / batch; }
};

// Memory that a thread keeps from task to task, as long as the longest task so far needed.
template <typename T>
class Room {
 public:
  T* of(int64_t size) {
    if (static_cast<int64_t>(elements_.size()) < size) elements_.resize(size);
    return elements_.data();
  }

 private:
  std::vector<T> elements_;
};

template <typename Products>
struct Rooms {
  using Acc = typename Products::Acc;
  Room<Acc> scores, dp, mixed, dk, dv, factors, totals;
  Room<typename Products::Element> p, ds;
};

// Dropout factors of a row, or null without dropout.
template <typename Acc>
const Acc* factors_of(const Dropout& dropout, int64_t row, int64_t keys, Room<Acc>& room) {
  if (!dropout.on()) return nullptr;
  Acc* factors = room.of(dropout_width(keys));
  dropout_factors_body(dropout, static_cast<uint32_t>(row), keys, factors);
  return factors;
}

template <typename T, typename Products>
void forward(Products& products, Rooms<Products>& rooms, const Packed& packed, int64_t item,
             const T* qkv, const Dropout& dropout, T* out, acc_t<T>* lse) {
  using Acc = acc_t<T>;
  const auto q = packed.of_qkv(qkv, item, 0), k = packed.of_qkv(qkv, item, 1);
  const auto to = packed.of_out(out, item);
  const int64_t keys = q.count, width = Products::width(keys);
  if (keys == 0) return;
  products.set_keys(k, packed.of_qkv(qkv, item, 2), false);
  const int64_t block = Products::width(std::min(keys, kQueries));
  Acc* scores = rooms.scores.of(block * width);
  Acc* mixed = rooms.mixed.of(block * packed.dim);
  Acc* totals = rooms.totals.of(2 * block);
  auto* p = rooms.p.of(block * width);
  const Acc scale = 1 / std::sqrt(static_cast<Acc>(packed.dim));
  for (int64_t begin = 0; begin < keys; begin += kQueries) {
    const int64_t count = std::min(kQueries, keys - begin);
    products.set_queries(q.from(begin, count));
    products.scores(scores);
    for (int64_t r = 0; r < count; ++r) {
      const int64_t row = packed.first(item) + (begin + r) * packed.heads;
      softmax_row(scores + r * width, factors_of(dropout, row, keys, rooms.factors), keys, width,
                  scale, p + r * width, totals + 2 * r);
      if (lse != nullptr) lse[row] = totals[2 * r] + std::log(totals[2 * r + 1]);
    }
    products.mix_values(p, mixed);
    for (int64_t r = 0; r < count; ++r) {
      scale_row(static_cast<const Acc*>(mixed + r * packed.dim), 1 / totals[2 * r + 1], packed.dim,
                to.data + (begin + r) * to.stride);
    }
  }
}

template <typename T>
struct Saved {
  const T* grad;
  const T* qkv;
  const T* out;
  const acc_t<T>* lse;
  int64_t leading;
};

template <typename T, typename Products>
void backward(Products& products, Rooms<Products>& rooms, const Packed& packed, int64_t item,
              const Saved<T>& saved, const Dropout& dropout, T* grad_qkv) {
  using Acc = acc_t<T>;
  const auto q = packed.of_qkv(saved.qkv, item, 0), k = packed.of_qkv(saved.qkv, item, 1);
  const auto v = packed.of_qkv(saved.qkv, item, 2);
  const auto grad = packed.of_out(saved.grad, item), out = packed.of_out(saved.out, item);
  const int64_t keys = q.count, width = Products::width(keys), dim = packed.dim;
  if (keys == 0) return;
  products.set_keys(k, v, true);
  const int64_t block = Products::width(std::min(keys, kQueries));
  Acc* scores = rooms.scores.of(block * width);
  Acc* dp = rooms.dp.of(block * width);
  Acc* dq = rooms.mixed.of(block * dim);
  Acc* dk = rooms.dk.of(width * dim);
  Acc* dv = rooms.dv.of(width * dim);
  auto* p = rooms.p.of(block * width);
  auto* ds = rooms.ds.of(block * width);
  const Acc scale = 1 / std::sqrt(static_cast<Acc>(dim));
  const auto store = [&](const Acc* from, int64_t count, int64_t first, int part) {
    const auto to = packed.of_qkv(grad_qkv, item, part);
    for (int64_t r = 0; r < count; ++r) {
      scale_row(from + r * dim, Acc(1), dim, to.data + (first + r) * to.stride);
    }
  };
  for (int64_t begin = 0; begin < keys; begin += kQueries) {
    const int64_t count = std::min(kQueries, keys - begin);
    products.set_queries(q.from(begin, count));
    products.set_grads(grad.from(begin, count));
    products.scores(scores);
    products.grad_scores(dp);
    for (int64_t r = 0; r < count; ++r) {
      const int64_t row = packed.first(item) + (begin + r) * packed.heads;
      const int64_t dropped = row + saved.leading * packed.heads;
      Acc delta;
      dot_row(grad.data + (begin + r) * grad.stride, out.data + (begin + r) * out.stride, dim,
              &delta);
      softmax_row_backward(scores + r * width, dp + r * width,
                           factors_of(dropout, dropped, keys, rooms.factors), keys, width, scale,
                           saved.lse[row], delta, p + r * width, ds + r * width);
    }
    // Rows that pad the last block must add nothing to sums over queries.
    const int64_t filled = Products::width(count);
    std::fill(p + count * width, p + filled * width, typename Products::Element(0));
    std::fill(ds + count * width, ds + filled * width, typename Products::Element(0));
    products.mix_keys(ds, dq);
    products.sum_queries(p, ds, begin > 0, dv, dk);
    store(dq, count, begin, 0);
  }
  store(dk, keys, 0, 1);
  store(dv, keys, 0, 2);
}

// Runs work(products, rooms, item) for every head of every sequence. The outer loop runs over
// heads, so that threads divide sequences of uneven lengths evenly.
template <typename T, typename Work>
void for_each_head(const Packed& packed, const Work& work) {
  const auto run = [&](auto products, int64_t first, int64_t last) {
    Rooms<decltype(products)> rooms;
    for (int64_t item = first; item < last; ++item) work(products, rooms, item);
  };
  serial_blas_for(packed.batch * packed.heads, [&](int64_t first, int64_t last) {
#if defined(FASTADV_AVX512)
    if constexpr (std::is_same_v<T, c10::BFloat16>) {
      if (has_brgemm() && packed.dim % 2 == 0) {
        const BrgemmScope scope;
        run(BrgemmProducts(packed.dim), first, last);
        return;
      }
    }
#endif
    run(AtenProducts<T>(packed.dim), first, last);
  });
}

Packed check(const at::Tensor& qkv, const at::Tensor& cu_seqlens, int64_t heads) {
  check_float(qkv, "qkv");
  TORCH_CHECK_VALUE(qkv.dim() == 2 && heads > 0 && qkv.size(1) % (3 * heads) == 0, "qkv has shape ",
                    qkv.sizes(), ", expected (T, 3 * ", heads, " * head size)");
  check_dtype(cu_seqlens, at::kInt, "cu_seqlens");
  TORCH_CHECK_VALUE(cu_seqlens.dim() == 1 && cu_seqlens.size(0) > 0, "cu_seqlens has shape ",
                    cu_seqlens.sizes(), ", expected (B + 1,)");
  TORCH_CHECK_VALUE(qkv.is_contiguous() && cu_seqlens.is_contiguous(),
                    "qkv or cu_seqlens is strided, expected elements end to end");
  const Packed packed{cu_seqlens.const_data_ptr<int32_t>(), cu_seqlens.size(0) - 1, qkv.size(0),
                      heads, qkv.size(1) / (3 * heads)};
  TORCH_CHECK_VALUE(packed.cu_seqlens[0] == 0 && packed.cu_seqlens[packed.batch] == packed.tokens,
                    "cu_seqlens goes from ", packed.cu_seqlens[0], " to ",
                    packed.cu_seqlens[packed.batch], ", expected 0 to ", packed.tokens);
  for (int64_t b = 0; b < packed.batch; ++b) {
    TORCH_CHECK_VALUE(packed.cu_seqlens[b] <= packed.cu_seqlens[b + 1], "cu_seqlens falls from ",
                      packed.cu_seqlens[b], " to ", packed.cu_seqlens[b + 1],
                      ", expected offsets that never fall");
  }
  return packed;
}

void check_rows(const at::Tensor& x, const Packed& packed, int64_t columns, at::ScalarType dtype,
                const char* name) {
  check_shape(x, {packed.tokens, columns}, name);
  check_dtype(x, dtype, name);
  TORCH_CHECK_VALUE(x.is_contiguous(), name, " is strided, expected rows end to end");
}

void varlen_attention_cpu(const at::Tensor& qkv, const at::Tensor& cu_seqlens, int64_t,
                          int64_t heads, double p, const std::optional<at::Tensor>& seed,
                          int64_t site, const at::Tensor& out,
                          const std::optional<at::Tensor>& lse) {
  const Packed packed = check(qkv, cu_seqlens, heads);
  check_rows(out, packed, packed.hidden(), qkv.scalar_type(), "out");
  if (lse.has_value()) check_rows(*lse, packed, heads, acc_dtype(qkv.scalar_type()), "lse");
  const Dropout dropout = make_dropout(p, seed, site);
  AT_DISPATCH_FLOATING_TYPES_AND2(
      at::kHalf, at::kBFloat16, qkv.scalar_type(), "varlen_attention", [&] {
        const auto* x = qkv.const_data_ptr<scalar_t>();
        auto* to = out.mutable_data_ptr<scalar_t>();
        auto* sums = lse.has_value() ? lse->mutable_data_ptr<acc_t<scalar_t>>() : nullptr;
        for_each_head<scalar_t>(packed, [&](auto& products, auto& rooms, int64_t item) {
          forward<scalar_t>(products, rooms, packed, item, x, dropout, to, sums);
        });
      });
}

void varlen_attention_backward_cpu(const at::Tensor& grad, const at::Tensor& qkv,
                                   const at::Tensor& out, const at::Tensor& lse,
                                   const at::Tensor& cu_seqlens, int64_t, int64_t heads, double p,
                                   const std::optional<at::Tensor>& seed, int64_t site,
                                   int64_t leading, const at::Tensor& grad_qkv) {
  const Packed packed = check(qkv, cu_seqlens, heads);
  const auto dtype = qkv.scalar_type();
  check_rows(grad, packed, packed.hidden(), dtype, "grad");
  check_rows(out, packed, packed.hidden(), dtype, "out");
  check_rows(lse, packed, heads, acc_dtype(dtype), "lse");
  check_rows(grad_qkv, packed, 3 * packed.hidden(), dtype, "grad_qkv");
  const Dropout dropout = make_dropout(p, seed, site);
  AT_DISPATCH_FLOATING_TYPES_AND2(
      at::kHalf, at::kBFloat16, dtype, "varlen_attention_backward", [&] {
        const Saved<scalar_t> saved{grad.const_data_ptr<scalar_t>(), qkv.const_data_ptr<scalar_t>(),
                                    out.const_data_ptr<scalar_t>(),
                                    lse.const_data_ptr<acc_t<scalar_t>>(), leading};
        auto* to = grad_qkv.mutable_data_ptr<scalar_t>();
        for_each_head<scalar_t>(packed, [&](auto& products, auto& rooms, int64_t item) {
          backward<scalar_t>(products, rooms, packed, item, saved, dropout, to);
        });
      });
}

}  // namespace
}  // namespace fastadv

// Outputs are the caller's; lse (tokens, heads) keeps the log-sum-exp of the scaled scores for the
// backward. The tensors of the backward hold only the rows with a gradient: `leading` tokens come
// before them.
TORCH_LIBRARY_FRAGMENT(fastadv, m) {
  m.def(
      "varlen_attention(Tensor qkv, Tensor cu_seqlens, int max_seqlen, int heads, float p,"
      " Tensor? seed, int site, Tensor(a!) out, Tensor(b!)? lse) -> ()");
  m.def(
      "varlen_attention_backward(Tensor grad, Tensor qkv, Tensor out, Tensor lse,"
      " Tensor cu_seqlens, int max_seqlen, int heads, float p, Tensor? seed, int site,"
      " int leading, Tensor(a!) grad_qkv) -> ()");
}

TORCH_LIBRARY_IMPL(fastadv, CPU, m) {
  m.impl("varlen_attention", &fastadv::varlen_attention_cpu);
  m.impl("varlen_attention_backward", &fastadv::varlen_attention_backward_cpu);
}
