#include "serial_matmul.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/mm.h>

#include "common.h"

// A function of MKL, which PyTorch contains on x86; null in builds of PyTorch with another library.
extern "C" __attribute__((weak)) int MKL_Set_Num_Threads_Local(int threads);

namespace fastadv {

SerialBlas::SerialBlas() {
  if (MKL_Set_Num_Threads_Local != nullptr) before_ = MKL_Set_Num_Threads_Local(1);
}

SerialBlas::~SerialBlas() {
  if (MKL_Set_Num_Threads_Local != nullptr) MKL_Set_Num_Threads_Local(before_);
}

namespace {

// One side of a result, cut into parts of one size, a multiple of 16 near `part`. There is one part
// or an even number of them, so that two threads have equal work.
struct Cut {
  int64_t size, count;

  Cut(int64_t length, int64_t part)
      : size(std::max<int64_t>(
            16, ceil_div(ceil_div(length, std::max<int64_t>(1, length / part / 2 * 2)), 16) * 16)),
        count(ceil_div(length, size)) {}
};

// Larger tiles read their operands less often; smaller ones give every thread some work.
int64_t part_of(int64_t rows, int64_t columns) {
  constexpr int64_t kLarge = 512, kSmall = 256;
  return rows * columns >= 4 * kLarge * kLarge ? kLarge : kSmall;
}

// Calls tile(row, rows, column, columns) for every tile of a (rows, columns) result.
template <typename Tile>
void for_each_tile(int64_t rows, int64_t columns, const Tile& tile) {
  const int64_t part = part_of(rows, columns);
  const Cut down(rows, part), across(columns, part);
  serial_blas_for(down.count * across.count, [&](int64_t first, int64_t last) {
    for (int64_t task = first; task < last; ++task) {
      const int64_t row = task / across.count * down.size,
                    column = task % across.count * across.size;
      tile(row, std::min(down.size, rows - row), column, std::min(across.size, columns - column));
    }
  });
}

}  // namespace

void serial_matmul(const at::Tensor& a, const at::Tensor& b, const at::Tensor& out) {
  for_each_tile(out.size(0), out.size(1),
                [&](int64_t row, int64_t rows, int64_t column, int64_t columns) {
                  at::Tensor to = out.narrow(0, row, rows).narrow(1, column, columns);
                  at::mm_out(to, a.narrow(0, row, rows), b.narrow(1, column, columns));
                });
}

void serial_linear(const at::Tensor& x, const at::Tensor& weight,
                   const std::optional<at::Tensor>& bias, const at::Tensor& y) {
  const auto acc = acc_dtype(x.scalar_type());
  const at::Tensor wide = x.to(acc);
  const bool in_place = y.scalar_type() == acc;
  for_each_tile(y.size(0), y.size(1),
                [&](int64_t row, int64_t rows, int64_t column, int64_t columns) {
                  const at::Tensor rows_of_x = wide.narrow(0, row, rows);
                  const at::Tensor part = weight.narrow(0, column, columns).to(acc);
                  const at::Tensor to = y.narrow(0, row, rows).narrow(1, column, columns);
                  at::Tensor sums = in_place ? to : at::empty({rows, columns}, wide.options());
                  at::mm_out(sums, rows_of_x, part.t());
                  if (bias.has_value()) sums.add_(bias->narrow(0, column, columns));
                  if (!in_place) to.copy_(sums);
                });
}

}  // namespace fastadv
