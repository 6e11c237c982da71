// Adam on the rows of a table that a batch reads; the steps of all other rows are deferred: schema
// and CPU kernels.
#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <torch/library.h>

#include <algorithm>
#include <vector>

#include "common.h"
#include "cpu/adam.h"
#include "cpu/dense.h"

namespace fastadv {
namespace {

// A task smaller than this costs more to hand to a thread than to do.
constexpr int64_t kElementsPerTask = 16384;

FASTADV_SIMD_FUNCTION(adam_row)

// Takes the steps without a gradient that `terms` weights and nodes stand for; then m and v decay.
template <typename T>
FASTADV_INLINE void catch_up_row_body(const T* weights, const T* nodes, int64_t terms, T decay1,
                                      T decay2, int64_t width, T* weight,
                                      compensation_t<T>* compensation, T* exp_avg, T* exp_avg_sq) {
#pragma omp simd
  for (int64_t j = 0; j < width; ++j) {
    const T root = root_of(exp_avg_sq[j]);
    T sum = 0;
    for (int64_t i = 0; i < terms; ++i) sum += weights[i] / (root + nodes[i]);
    move_weight(-exp_avg[j] * sum, weight + j, compensation + j);
    exp_avg[j] *= decay1;
    exp_avg_sq[j] *= decay2;
  }
}
FASTADV_SIMD_FUNCTION(catch_up_row)

template <typename T>
struct Table {
  T* weight;
  compensation_t<T>* compensation;
  T *exp_avg, *exp_avg_sq;
  int64_t width;

  Table(const at::Tensor& w, const std::optional<at::Tensor>& r, const at::Tensor& m,
        const at::Tensor& v)
      : weight(w.mutable_data_ptr<T>()),
        compensation(r.has_value() ? r->mutable_data_ptr<compensation_t<T>>() : nullptr),
        exp_avg(m.mutable_data_ptr<T>()),
        exp_avg_sq(v.mutable_data_ptr<T>()),
        width(w.size(1)) {}

  compensation_t<T>* compensation_of(int64_t row) const {
    return compensation == nullptr ? nullptr : compensation + row * width;
  }
};

void check_table(const at::Tensor& weight, const std::optional<at::Tensor>& compensation,
                 const at::Tensor& exp_avg, const at::Tensor& exp_avg_sq, const at::Tensor& rows) {
  TORCH_CHECK_VALUE(weight.dim() == 2, "weight has ", weight.dim(), " dimensions, expected 2");
  const bool wide = weight.scalar_type() == at::kDouble;
  TORCH_CHECK_VALUE(wide || compensation.has_value(),
                    "found no compensation, expected one of a float32 ", "table");
  check_adam(weight, wide ? weight : *compensation, exp_avg, exp_avg_sq);
  check_dense(rows, at::kLong, {rows.numel()}, "rows");
  const auto* row = rows.const_data_ptr<int64_t>();
  for (int64_t i = 0; i < rows.numel(); ++i) {
    TORCH_CHECK_VALUE(row[i] >= 0 && row[i] < weight.size(0), "rows holds ", row[i],
                      ", expected a row of ", weight.size(0));
    TORCH_CHECK_VALUE(i == 0 || row[i - 1] < row[i], "rows holds ", row[i], " after ", row[i - 1],
                      ", expected every row once, in order");
  }
}

int64_t grain_of(int64_t width) { return ceil_div(kElementsPerTask, std::max<int64_t>(1, width)); }

void embedding_adam_cpu(const at::Tensor& weight, const std::optional<at::Tensor>& compensation,
                        const at::Tensor& exp_avg, const at::Tensor& exp_avg_sq,
                        const at::Tensor& rows, const at::Tensor& grads, int64_t step, double lr,
                        double beta1, double beta2, double eps, double grad_scale) {
  check_table(weight, compensation, exp_avg, exp_avg_sq, rows);
  const int64_t count = rows.numel(), width = weight.size(1);
  check_dense(grads, weight.scalar_type(), {count, width}, "grads");
  TORCH_CHECK_VALUE(step > 0, "step is ", step, ", expected at least 1");
  AT_DISPATCH_FLOATING_TYPES(weight.scalar_type(), "embedding_adam", [&] {
    const Table<scalar_t> table(weight, compensation, exp_avg, exp_avg_sq);
    const AdamStep<scalar_t> numbers(step, lr, beta1, beta2, eps, 0.0, grad_scale);
    const AdamStep<scalar_t>* shared = &numbers;
    const auto* row = rows.const_data_ptr<int64_t>();
    const auto* grad = grads.const_data_ptr<scalar_t>();
    at::parallel_for(0, count, grain_of(width), [&](int64_t first, int64_t last) {
      for (int64_t i = first; i < last; ++i) {
        const int64_t at = row[i] * width;
        adam_row(shared, grad + i * width, width, table.weight + at, table.compensation_of(row[i]),
                 table.exp_avg + at, table.exp_avg_sq + at);
      }
    });
  });
}

void embedding_adam_catch_up_cpu(const at::Tensor& weight,
                                 const std::optional<at::Tensor>& compensation,
                                 const at::Tensor& exp_avg, const at::Tensor& exp_avg_sq,
                                 const at::Tensor& rows, const at::Tensor& rules,
                                 const at::Tensor& offsets, const at::Tensor& rule_weights,
                                 const at::Tensor& rule_nodes, const at::Tensor& decays) {
  check_table(weight, compensation, exp_avg, exp_avg_sq, rows);
  const int64_t count = rows.numel(), kinds = offsets.numel() - 1;
  check_dense(rules, at::kLong, {count}, "rules");
  check_dense(offsets, at::kLong, {kinds + 1}, "offsets");
  check_dense(rule_weights, at::kDouble, {rule_weights.numel()}, "rule_weights");
  check_dense(rule_nodes, at::kDouble, {rule_weights.numel()}, "rule_nodes");
  check_dense(decays, at::kDouble, {kinds, 2}, "decays");
  const auto *row = rows.const_data_ptr<int64_t>(), *rule = rules.const_data_ptr<int64_t>();
  const auto* offset = offsets.const_data_ptr<int64_t>();
  const auto* decay = decays.const_data_ptr<double>();
  for (int64_t i = 0; i < count; ++i) {
    TORCH_CHECK_VALUE(rule[i] >= 0 && rule[i] < kinds, "rules holds ", rule[i],
                      ", expected one of ", kinds);
  }
  AT_DISPATCH_FLOATING_TYPES(weight.scalar_type(), "embedding_adam_catch_up", [&] {
    using T = scalar_t;
    const Table<T> table(weight, compensation, exp_avg, exp_avg_sq);
    const auto *a = rule_weights.const_data_ptr<double>(), *b = rule_nodes.const_data_ptr<double>();
    const std::vector<T> weights(a, a + rule_weights.numel()), nodes(b, b + rule_nodes.numel());
    at::parallel_for(0, count, grain_of(table.width), [&](int64_t first, int64_t last) {
      for (int64_t i = first; i < last; ++i) {
        const int64_t at = row[i] * table.width, r = rule[i], begin = offset[r];
        const T* rule_weight = weights.data() + begin;
        const T* rule_node = nodes.data() + begin;
        catch_up_row(rule_weight, rule_node, offset[r + 1] - begin, static_cast<T>(decay[2 * r]),
                     static_cast<T>(decay[2 * r + 1]), table.width, table.weight + at,
                     table.compensation_of(row[i]), table.exp_avg + at, table.exp_avg_sq + at);
      }
    });
  });
}

}  // namespace
}  // namespace fastadv

// `embedding_adam` is `adam` on rows of a table (V, H), each named once and in order, with their
// gradients (U, H). `embedding_adam_catch_up` takes the steps that rows missed: rules (U,) holds
// for every row the index of its rule among the `deferred_rules` (offsets, weights, nodes) and of
// the powers of beta1 and beta2 (kinds, 2) that its moments decay by.
TORCH_LIBRARY_FRAGMENT(fastadv, m) {
  m.def(
      "embedding_adam(Tensor(a!) weight, Tensor(b!)? compensation, Tensor(c!) exp_avg,"
      " Tensor(d!) exp_avg_sq, Tensor rows, Tensor grads, int step, float lr, float beta1,"
      " float beta2, float eps, float grad_scale) -> ()");
  m.def(
      "embedding_adam_catch_up(Tensor(a!) weight, Tensor(b!)? compensation, Tensor(c!) exp_avg,"
      " Tensor(d!) exp_avg_sq, Tensor rows, Tensor rules, Tensor offsets, Tensor rule_weights,"
      " Tensor rule_nodes, Tensor decays) -> ()");
}

TORCH_LIBRARY_IMPL(fastadv, CPU, m) {
  m.impl("embedding_adam", &fastadv::embedding_adam_cpu);
  m.impl("embedding_adam_catch_up", &fastadv::embedding_adam_catch_up_cpu);
}
