// Sums down the columns of a gradient, in parts: the same bits on any number of threads.
#pragma once

#include <ATen/Parallel.h>

#include <algorithm>
#include <cstdint>
#include <memory>

#include "common.h"
#include "simd.h"

namespace fastadv {

// Rows, cut into parts by their number alone. Each part has its own sums, which are added in order
// afterwards.
struct RowParts {
  static constexpr int64_t kMostParts = 64, kFewestRows = 16;

  int64_t rows, size, count;

  explicit RowParts(int64_t rows_in)
      : rows(rows_in),
        size(std::max(kFewestRows, ceil_div(rows_in, kMostParts))),
        count(ceil_div(rows_in, size)) {}

  int64_t begin(int64_t part) const { return part * size; }
  int64_t end(int64_t part) const { return std::min(rows, (part + 1) * size); }
};

template <typename Acc>
FASTADV_INLINE void add_to_row_body(const Acc* row, int64_t width, Acc* sum) {
#pragma omp simd
  for (int64_t j = 0; j < width; ++j) sum[j] += row[j];
}
FASTADV_SIMD_FUNCTION(add_to_row)

template <typename Acc>
class ColumnSums {
 public:
  ColumnSums(const RowParts& parts, int64_t width)
      : parts_(parts), width_(width), sums_(new Acc[parts.count * width]) {}

  // The sums (width,) of one part, set to 0 by the thread that will add to them.
  Acc* start(int64_t part) {
    std::fill_n(sums_.get() + part * width_, width_, Acc(0));
    return sums_.get() + part * width_;
  }

  // The total over the parts, into out (width,).
  void total(Acc* out) {
    constexpr int64_t kColumns = 256;
    at::parallel_for(0, ceil_div(width_, kColumns), 4, [&](int64_t first, int64_t last) {
      for (int64_t block = first; block < last; ++block) {
        const int64_t column = block * kColumns, columns = std::min(kColumns, width_ - column);
        std::fill_n(out + column, columns, Acc(0));
        for (int64_t part = 0; part < parts_.count; ++part) {
          add_to_row(static_cast<const Acc*>(sums_.get() + part * width_ + column), columns,
                     out + column);
        }
      }
    });
  }

 private:
  RowParts parts_;
  int64_t width_;
  std::unique_ptr<Acc[]> sums_;
};

// work(part, sums) adds rows [begin(part), end(part)) to sums (width,); the total goes to out.
template <typename Acc, typename Work>
void sum_over_parts(const RowParts& parts, int64_t width, Acc* out, const Work& work) {
  ColumnSums<Acc> sums(parts, width);
  at::parallel_for(0, parts.count, 1, [&](int64_t first, int64_t last) {
    for (int64_t part = first; part < last; ++part) work(part, sums.start(part));
  });
  sums.total(out);
}

}  // namespace fastadv
