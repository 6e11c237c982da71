// Embedding rows, their sum, layer normalisation and dropout: schema and CPU kernels.
#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <torch/library.h>

#include <algorithm>
#include <vector>

#include "common.h"
#include "cpu/column_sums.h"
#include "cpu/dense.h"
#include "cpu/layer_norm.h"
#include "cpu/philox.h"

namespace fastadv {
namespace {

// A task smaller than this costs more to hand to a thread than to do.
constexpr int64_t kElementsPerTask = 16384;
// The backward holds the gradients of the rows of this many parts at a time, so they stay in cache.
constexpr int64_t kPartsAtOnce = 16;

FASTADV_SIMD_FUNCTION(add_widened_row)
FASTADV_SIMD_FUNCTION(row_stats)
FASTADV_SIMD_FUNCTION(normalize_row)
FASTADV_SIMD_FUNCTION(narrow_row)
FASTADV_SIMD_FUNCTION(multiply_row)
FASTADV_SIMD_FUNCTION(layer_norm_grad_sums)
FASTADV_SIMD_FUNCTION(layer_norm_grad_row)

template <typename Acc>
struct Tables {
  const int64_t *input_ids, *position_ids;
  const Acc *word, *position, *token_type, *gain;
  Acc eps;
  int64_t width;

  // The sum of token t's rows, and its mean and 1 / std.
  void row(int64_t t, Acc* sum, Acc* stats) const {
    add_widened_row(word + input_ids[t] * width, position + position_ids[t] * width, width, sum);
    if (token_type != nullptr) add_to_row(token_type, width, sum);
    row_stats(static_cast<const Acc*>(sum), width, eps, stats);
  }
};

template <typename T>
void forward_rows(const Tables<acc_t<T>>& tables, const acc_t<T>* bias, const Dropout& dropout,
                  int64_t first, int64_t last, acc_t<T>* y, T* y_low) {
  using Acc = acc_t<T>;
  const int64_t width = tables.width;
  std::vector<Acc> sum(width), factors(dropout_width(width));
  for (int64_t t = first; t < last; ++t) {
    Acc* out = y + t * width;
    Acc stats[2];
    tables.row(t, sum.data(), stats);
    normalize_row(static_cast<const Acc*>(sum.data()), static_cast<const Acc*>(stats), tables.gain,
                  bias, width, out);
    if (dropout.on()) {
      dropout_factors_body(dropout, static_cast<uint32_t>(t), width, factors.data());
      multiply_row(static_cast<const Acc*>(out), static_cast<const Acc*>(factors.data()), width,
                   out);
    }
    if (y_low != nullptr) narrow_row(static_cast<const Acc*>(out), width, y_low + t * width);
  }
}

template <typename T>
struct Backward {
  using Acc = acc_t<T>;
  Tables<Acc> tables;
  const Acc* grad;
  const T* grad_low;
  Dropout dropout;
  int64_t leading;
  // Rows of grad_word that the tokens' gradients go to, and the one that gets none.
  const int64_t* word_rows;
  int64_t padding_row, position_padding_idx;
  Acc *grad_word, *grad_position;

  // grad_z gets the gradients of the rows' sums, beginning with row `first`. Adds the rows' part to
  // sums, (3, width): gain, bias, token_type.
  void rows(int64_t first, int64_t last, Acc* grad_z, Acc* sums) const {
    const int64_t width = tables.width;
    std::vector<Acc> sum(width), total(width), factors(dropout_width(width));
    for (int64_t t = first; t < last; ++t) {
      const Acc* g = grad + t * width;
      if (grad_low != nullptr) {
        add_widened_row(g, grad_low + t * width, width, total.data());
        g = total.data();
      }
      if (dropout.on()) {
        dropout_factors_body(dropout, static_cast<uint32_t>(leading + t), width, factors.data());
        multiply_row(g, static_cast<const Acc*>(factors.data()), width, total.data());
        g = total.data();
      }
      Acc stats[2], means[2];
      tables.row(t, sum.data(), stats);
      const Acc *z = sum.data(), *moments = stats;
      layer_norm_grad_sums(g, z, moments, tables.gain, width, sums, sums + width,
                           static_cast<Acc*>(means));
      Acc* out = grad_z + (t - first) * width;
      layer_norm_grad_row(g, z, moments, tables.gain, static_cast<const Acc*>(means), width, out);
      add_to_row(static_cast<const Acc*>(out), width, sums + 2 * width);
    }
  }

  // Adds columns [column, column + columns) of grad_z to the tables' rows, tokens in order: it does
  // not matter which thread has which columns.
  void scatter(int64_t first, int64_t last, const Acc* grad_z, int64_t column,
               int64_t columns) const {
    const int64_t width = tables.width;
    for (int64_t t = first; t < last; ++t) {
      const Acc* row = grad_z + (t - first) * width + column;
      const int64_t to = word_rows[t], place = tables.position_ids[t];
      if (to != padding_row) add_to_row(row, columns, grad_word + to * width + column);
      if (place != position_padding_idx) {
        add_to_row(row, columns, grad_position + place * width + column);
      }
    }
  }

  void run(int64_t tokens, Acc* grad_token_type, Acc* grad_vectors) const {
    const int64_t width = tables.width;
    const RowParts parts(tokens);
    ColumnSums<Acc> sums(parts, 3 * width);
    std::vector<Acc> grad_z(std::min(tokens, kPartsAtOnce * parts.size) * width);
    const int64_t block =
        std::max<int64_t>(64, ceil_div(ceil_div(width, at::get_num_threads()), int64_t{64}) * 64);
    for (int64_t begin = 0; begin < parts.count; begin += kPartsAtOnce) {
      const int64_t end = std::min(parts.count, begin + kPartsAtOnce);
      const int64_t first_row = parts.begin(begin), last_row = parts.end(end - 1);
      at::parallel_for(begin, end, 1, [&](int64_t first, int64_t last) {
        for (int64_t part = first; part < last; ++part) {
          rows(parts.begin(part), parts.end(part),
               grad_z.data() + (parts.begin(part) - first_row) * width, sums.start(part));
        }
      });
      at::parallel_for(0, ceil_div(width, block), 1, [&](int64_t first, int64_t last) {
        const int64_t column = first * block;
        scatter(first_row, last_row, grad_z.data(), column, std::min(width, last * block) - column);
      });
    }
    std::vector<Acc> total(3 * width);
    sums.total(total.data());
    std::copy_n(total.data(), 2 * width, grad_vectors);
    if (grad_token_type != nullptr) {
      add_to_row(static_cast<const Acc*>(total.data() + 2 * width), width, grad_token_type);
    }
  }
};

void check_ids(const at::Tensor& ids, int64_t rows, const char* name) {
  const auto* id = ids.const_data_ptr<int64_t>();
  for (int64_t t = 0; t < ids.size(0); ++t) {
    TORCH_CHECK_VALUE(id[t] >= 0 && id[t] < rows, name, " holds ", id[t], ", expected a row of ",
                      rows);
  }
}

template <typename Acc>
Tables<Acc> tables_of(const at::Tensor& input_ids, const at::Tensor& position_ids,
                      const at::Tensor& word, const at::Tensor& position,
                      const std::optional<at::Tensor>& token_type, const at::Tensor& gain,
                      double eps) {
  return {input_ids.const_data_ptr<int64_t>(),
          position_ids.const_data_ptr<int64_t>(),
          word.const_data_ptr<Acc>(),
          position.const_data_ptr<Acc>(),
          data_or_null<Acc>(token_type),
          gain.const_data_ptr<Acc>(),
          static_cast<Acc>(eps),
          word.size(1)};
}

void check_inputs(const at::Tensor& input_ids, const at::Tensor& position_ids,
                  const at::Tensor& word, const at::Tensor& position,
                  const std::optional<at::Tensor>& token_type, const at::Tensor& gain) {
  const auto acc = word.scalar_type();
  TORCH_CHECK_VALUE(acc == at::kFloat || acc == at::kDouble, "word has dtype ", acc,
                    ", expected float32 or float64");
  TORCH_CHECK_VALUE(word.dim() == 2, "word has ", word.dim(), " dimensions, expected 2");
  TORCH_CHECK_VALUE(position.dim() == 2, "position has ", position.dim(),
                    " dimensions, expected 2");
  TORCH_CHECK_VALUE(input_ids.dim() == 1, "input_ids has ", input_ids.dim(),
                    " dimensions, expected 1");
  check_dense(input_ids, at::kLong, input_ids.sizes(), "input_ids");
  check_dense(position_ids, at::kLong, input_ids.sizes(), "position_ids");
  check_dense(word, acc, word.sizes(), "word");
  check_dense(position, acc, {position.size(0), word.size(1)}, "position");
  check_dense(token_type, acc, {word.size(1)}, "token_type");
  check_dense(gain, acc, {word.size(1)}, "gain");
  check_ids(input_ids, word.size(0), "input_ids");
  check_ids(position_ids, position.size(0), "position_ids");
}

// The type of the rounded copy, which may be left out.
at::ScalarType low_dtype(const std::optional<at::Tensor>& low, at::ScalarType acc,
                         const char* name) {
  if (!low.has_value()) return acc;
  check_float(*low, name);
  TORCH_CHECK_VALUE(acc_dtype(low->scalar_type()) == acc, name, " has dtype ", low->scalar_type(),
                    ", expected one whose sums are kept in ", acc);
  return low->scalar_type();
}

void embedding_layer_norm_cpu(const at::Tensor& input_ids, const at::Tensor& position_ids,
                              const at::Tensor& word, const at::Tensor& position,
                              const std::optional<at::Tensor>& token_type, const at::Tensor& gain,
                              const at::Tensor& bias, double eps, double p,
                              const std::optional<at::Tensor>& seed, int64_t site,
                              const at::Tensor& y, const std::optional<at::Tensor>& y_low) {
  check_inputs(input_ids, position_ids, word, position, token_type, gain);
  const int64_t tokens = input_ids.size(0), width = word.size(1);
  const auto acc = word.scalar_type(), low = low_dtype(y_low, acc, "y_low");
  check_dense(bias, acc, {width}, "bias");
  check_dense(y, acc, {tokens, width}, "y");
  check_dense(y_low, low, {tokens, width}, "y_low");
  const Dropout dropout = make_dropout(p, seed, site);
  const int64_t grain = ceil_div(kElementsPerTask, std::max<int64_t>(1, width));
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, low, "embedding_layer_norm", [&] {
    using Acc = acc_t<scalar_t>;
    const auto tables =
        tables_of<Acc>(input_ids, position_ids, word, position, token_type, gain, eps);
    const auto* b = bias.const_data_ptr<Acc>();
    auto* out = y.mutable_data_ptr<Acc>();
    auto* out_low = mutable_data_or_null<scalar_t>(y_low);
    at::parallel_for(0, tokens, grain, [&](int64_t first, int64_t last) {
      forward_rows<scalar_t>(tables, b, dropout, first, last, out, out_low);
    });
  });
}

void embedding_layer_norm_backward_cpu(
    const at::Tensor& grad, const std::optional<at::Tensor>& grad_low, const at::Tensor& input_ids,
    const at::Tensor& position_ids, const at::Tensor& word, const at::Tensor& position,
    const std::optional<at::Tensor>& token_type, const at::Tensor& gain, double eps, double p,
    const std::optional<at::Tensor>& seed, int64_t site, int64_t leading,
    const std::optional<at::Tensor>& word_rows, int64_t padding_row, int64_t position_padding_idx,
    const at::Tensor& grad_word, const at::Tensor& grad_position,
    const std::optional<at::Tensor>& grad_token_type, const at::Tensor& grad_vectors) {
  check_inputs(input_ids, position_ids, word, position, token_type, gain);
  const int64_t tokens = input_ids.size(0), width = word.size(1);
  const auto acc = word.scalar_type(), low = low_dtype(grad_low, acc, "grad_low");
  TORCH_CHECK_VALUE(leading >= 0, "leading is ", leading, ", expected no negative number");
  check_dense(grad, acc, {tokens, width}, "grad");
  check_dense(grad_low, low, {tokens, width}, "grad_low");
  if (word_rows.has_value()) {
    check_dense(*word_rows, at::kLong, {tokens}, "word_rows");
    check_dense(grad_word, acc, {grad_word.size(0), width}, "grad_word");
    check_ids(*word_rows, grad_word.size(0), "word_rows");
  } else {
    check_dense(grad_word, acc, word.sizes(), "grad_word");
  }
  check_dense(grad_position, acc, position.sizes(), "grad_position");
  check_dense(grad_token_type, acc, {width}, "grad_token_type");
  check_dense(grad_vectors, acc, {2, width}, "grad_vectors");
  const Dropout dropout = make_dropout(p, seed, site);
  AT_DISPATCH_FLOATING_TYPES_AND2(
      at::kHalf, at::kBFloat16, low, "embedding_layer_norm_backward", [&] {
        using Acc = acc_t<scalar_t>;
        const Backward<scalar_t> backward{
            tables_of<Acc>(input_ids, position_ids, word, position, token_type, gain, eps),
            grad.const_data_ptr<Acc>(),
            data_or_null<scalar_t>(grad_low),
            dropout,
            leading,
            (word_rows.has_value() ? *word_rows : input_ids).const_data_ptr<int64_t>(),
            padding_row,
            position_padding_idx,
            grad_word.mutable_data_ptr<Acc>(),
            grad_position.mutable_data_ptr<Acc>(),
        };
        backward.run(tokens, mutable_data_or_null<Acc>(grad_token_type),
                     grad_vectors.mutable_data_ptr<Acc>());
      });
}

}  // namespace
}  // namespace fastadv

TORCH_LIBRARY_FRAGMENT(fastadv, m) {
  m.def(
      "embedding_layer_norm(Tensor input_ids, Tensor position_ids, Tensor word, Tensor position,"
      " Tensor? token_type, Tensor gain, Tensor bias, float eps, float p, Tensor? seed, int site,"
      " Tensor(a!) y, Tensor(b!)? y_low) -> ()");
  m.def(
      "embedding_layer_norm_backward(Tensor grad, Tensor? grad_low, Tensor input_ids,"
      " Tensor position_ids, Tensor word, Tensor position, Tensor? token_type, Tensor gain,"
      " float eps, float p, Tensor? seed, int site, int leading, Tensor? word_rows,"
      " int padding_row, int position_padding_idx, Tensor(a!) grad_word, Tensor(b!) grad_position,"
      " Tensor(c!)? grad_token_type, Tensor(d!) grad_vectors) -> ()");
}

TORCH_LIBRARY_IMPL(fastadv, CPU, m) {
  m.impl("embedding_layer_norm", &fastadv::embedding_layer_norm_cpu);
  m.impl("embedding_layer_norm_backward", &fastadv::embedding_layer_norm_backward_cpu);
}
