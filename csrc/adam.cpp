// Adam over many tensors in one pass over memory: schema and CPU kernel.
#include "cpu/adam.h"

#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <algorithm>
#include <vector>

#include "common.h"
#include "cpu/dense.h"
#include "cpu/weight_products.h"

namespace fastadv {
namespace {

FASTADV_SIMD_FUNCTION(adam_row)

// Elements of a piece of work: large enough that a thread streams through memory, small enough that
// the rounded copy of a piece stays in its cache.
constexpr int64_t kPiece = 65536;

constexpr int64_t kNormPiece = 8192;

template <typename T>
struct Piece {
  const AdamStep<T>* step;
  const T* grad;
  T* weight;
  compensation_t<T>* compensation;
  T *exp_avg, *exp_avg_sq;
  // Of a weight (n, k) with layouts these are rows: the first and their number. Otherwise they are
  // elements.
  int64_t begin, count, n, k;
  uint32_t *forward, *backward;

  void run() const {
    if (forward == nullptr) {
      update(begin, count);
      return;
    }
#if defined(FASTADV_AVX512)
    std::vector<BFloat16> low(kPackRows * k);
    for (int64_t row = begin; row < begin + count; row += kPackRows) {
      const int64_t rows = std::min(kPackRows, begin + count - row);
      // One row at a time: it is still in the first-level cache when it is rounded.
      for (int64_t r = 0; r < rows; ++r) {
        update((row + r) * k, k);
        round_row(reinterpret_cast<const float*>(weight) + (row + r) * k, k, low.data() + r * k);
      }
      pack_rows(low.data(), n, k, row, rows, forward, backward);
    }
    // Streamed stores must be visible before other threads read them.
    _mm_sfence();
#endif
  }

  void update(int64_t from, int64_t elements) const {
    adam_row(step, grad + from, elements, weight + from,
             compensation == nullptr ? nullptr : compensation + from, exp_avg + from,
             exp_avg_sq + from);
  }
};

template <typename T>
void append_pieces(const Piece<T>& whole, int64_t elements, std::vector<Piece<T>>& pieces) {
  // Layouts are made of blocks of kPackRows rows, so a piece holds whole blocks.
  const int64_t unit = whole.forward == nullptr ? 1 : kPackRows;
  const int64_t total = whole.forward == nullptr ? elements : whole.n;
  const int64_t width = whole.forward == nullptr ? 1 : whole.k;
  const int64_t size = std::max(unit, kPiece / width / unit * unit);
  for (int64_t begin = 0; begin < total; begin += size) {
    pieces.push_back(whole);
    pieces.back().begin = begin;
    pieces.back().count = std::min(size, total - begin);
  }
}

// The norm of all tensors' elements together, a float64 scalar. Neither the pieces nor the order of
// their sums depends on the number of threads.
at::Tensor gradient_norm_cpu(at::TensorList grads) {
  at::Tensor norm = at::zeros({}, at::dtype(at::kDouble));
  if (grads.empty()) return norm;
  double total = 0.0;
  AT_DISPATCH_FLOATING_TYPES(grads[0].scalar_type(), "gradient_norm", [&] {
    struct Run {
      const scalar_t* x;
      int64_t count;
    };
    std::vector<Run> runs;
    for (const at::Tensor& grad : grads) {
      check_dense(grad, grads[0].scalar_type(), grad.sizes(), "grad");
      const auto* x = grad.const_data_ptr<scalar_t>();
      for (int64_t begin = 0; begin < grad.numel(); begin += kNormPiece) {
        runs.push_back({x + begin, std::min(kNormPiece, grad.numel() - begin)});
      }
    }
    std::vector<scalar_t> sums(runs.size());
    at::parallel_for(0, static_cast<int64_t>(runs.size()), 8, [&](int64_t first, int64_t last) {
      for (int64_t i = first; i < last; ++i) square_sum(runs[i].x, runs[i].count, sums.data() + i);
    });
    for (const scalar_t sum : sums) total += sum;
  });
  norm.fill_(std::sqrt(total));
  return norm;
}

void adam_cpu(at::TensorList weights, at::TensorList compensations, at::TensorList grads,
              at::TensorList exp_avgs, at::TensorList exp_avg_sqs, at::TensorList forwards,
              at::TensorList backwards, at::IntArrayRef steps, double lr, double beta1,
              double beta2, double eps, double weight_decay, double grad_scale) {
  const size_t count = weights.size();
  if (count == 0) return;
  const bool wide = weights[0].scalar_type() == at::kDouble;
  const auto as_many = [&](size_t found, const char* name) {
    TORCH_CHECK_VALUE(found == count, "found ", found, " tensors in ", name, ", expected ", count,
                      ", one a weight");
  };
  if (!wide) as_many(compensations.size(), "compensations");
  as_many(grads.size(), "grads");
  as_many(exp_avgs.size(), "exp_avgs");
  as_many(exp_avg_sqs.size(), "exp_avg_sqs");
  as_many(steps.size(), "steps");
  const bool packed = !forwards.empty();
  if (packed) {
    as_many(forwards.size(), "forward_layouts");
    as_many(backwards.size(), "backward_layouts");
  }
  AT_DISPATCH_FLOATING_TYPES(weights[0].scalar_type(), "adam", [&] {
    using T = scalar_t;
    std::vector<AdamStep<T>> numbers;
    numbers.reserve(count);
    std::vector<Piece<T>> pieces;
    for (size_t i = 0; i < count; ++i) {
      const at::Tensor& w = weights[i];
      check_adam(w, wide ? w : compensations[i], exp_avgs[i], exp_avg_sqs[i]);
      check_dtype(w, weights[0].scalar_type(), "weight");
      check_dense(grads[i], w.scalar_type(), w.sizes(), "grad");
      TORCH_CHECK_VALUE(steps[i] > 0, "steps holds ", steps[i], ", expected at least 1");
      numbers.emplace_back(steps[i], lr, beta1, beta2, eps, weight_decay, grad_scale);
      Piece<T> whole{&numbers.back(),
                     grads[i].const_data_ptr<T>(),
                     w.mutable_data_ptr<T>(),
                     wide ? nullptr : compensations[i].mutable_data_ptr<compensation_t<T>>(),
                     exp_avgs[i].mutable_data_ptr<T>(),
                     exp_avg_sqs[i].mutable_data_ptr<T>(),
                     0,
                     0,
                     0,
                     0,
                     nullptr,
                     nullptr};
      if (packed) {
        TORCH_CHECK_VALUE(w.dim() == 2 && packs(at::kBFloat16, w.size(0)) &&
                              packs(at::kBFloat16, w.size(1)) && !wide,
                          "a weight of shape ", w.sizes(), " has no packed layouts here");
        whole.n = w.size(0);
        whole.k = w.size(1);
        check_dense(forwards[i], at::kBFloat16, {w.numel()}, "forward_layout");
        check_dense(backwards[i], at::kBFloat16, {w.numel()}, "backward_layout");
        whole.forward = static_cast<uint32_t*>(forwards[i].mutable_data_ptr());
        whole.backward = static_cast<uint32_t*>(backwards[i].mutable_data_ptr());
      }
      append_pieces(whole, w.numel(), pieces);
    }
    at::parallel_for(0, static_cast<int64_t>(pieces.size()), 1, [&](int64_t first, int64_t last) {
      for (int64_t i = first; i < last; ++i) pieces[i].run();
    });
  });
}

}  // namespace
}  // namespace fastadv

// weight - lr * m^ / (sqrt(v^) + eps) - lr * weight_decay * weight, in place. A float32 weight has
// a bfloat16 compensation; layouts of `linear_pack`, where given, are rewritten.
TORCH_LIBRARY_FRAGMENT(fastadv, m) {
  m.def(
      "adam(Tensor(a!)[] weights, Tensor(b!)[] compensations, Tensor[] grads, Tensor(c!)[] "
      "exp_avgs,"
      " Tensor(d!)[] exp_avg_sqs, Tensor(e!)[] forward_layouts, Tensor(f!)[] backward_layouts,"
      " int[] steps, float lr, float beta1, float beta2, float eps, float weight_decay,"
      " float grad_scale) -> ()");
  m.def("gradient_norm(Tensor[] grads) -> Tensor");
}

TORCH_LIBRARY_IMPL(fastadv, CPU, m) {
  m.impl("adam", &fastadv::adam_cpu);
  m.impl("gradient_norm", &fastadv::gradient_norm_cpu);
}
