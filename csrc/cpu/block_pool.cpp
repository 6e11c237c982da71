// The pool of large CPU blocks: see block_pool.h.
#include "block_pool.h"

#include <ATen/Context.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>
#include <torch/library.h>

#include <algorithm>
#include <cstdlib>
#include <limits>
#include <mutex>
#include <vector>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace fastadv {
namespace {

// Smaller blocks come from the C library, which keeps them itself.
constexpr size_t kSmallest = size_t{1} << 20;
constexpr size_t kPage = size_t{2} << 20;
// A block may be this many times as large as what it is used for.
constexpr double kSlack = 4;
// Beyond this many unused bytes, the block that has been unused for longest is freed.
constexpr size_t kMostUnused = size_t{2} << 30;

struct Block {
  void* data;
  size_t bytes;
};

class BlockPool {
 public:
  Block take(size_t bytes) {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      auto best = unused_.end();
      for (auto it = unused_.begin(); it != unused_.end(); ++it) {
        const bool fits = it->bytes >= bytes && it->bytes <= kSlack * bytes + kPage;
        if (fits && (best == unused_.end() || it->bytes <= best->bytes)) best = it;
      }
      if (best != unused_.end()) {
        const Block found = *best;
        unused_.erase(best);
        unused_bytes_ -= found.bytes;
        return found;
      }
    }
    const size_t rounded = (bytes + kPage - 1) / kPage * kPage;
    void* data = std::aligned_alloc(kPage, rounded);
    TORCH_CHECK_WITH(OutOfMemoryError, data != nullptr, "found no memory for ", rounded, " bytes");
#if defined(__linux__)
    madvise(data, rounded, MADV_HUGEPAGE);
#endif
    return {data, rounded};
  }

  void give(Block block) {
    std::vector<Block> dropped;
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      unused_.push_back(block);
      unused_bytes_ += block.bytes;
      while (unused_bytes_ > kMostUnused) {
        unused_bytes_ -= unused_.front().bytes;
        dropped.push_back(unused_.front());
        unused_.erase(unused_.begin());
      }
    }
    for (const Block& old : dropped) std::free(old.data);
  }

 private:
  std::mutex mutex_;
  std::vector<Block> unused_;  // the longest unused first
  size_t unused_bytes_ = 0;
};

// Never destroyed: tensors may outlive every static object.
BlockPool& pool() {
  static BlockPool* const instance = new BlockPool;
  return *instance;
}

}  // namespace

at::Tensor pooled_empty(at::IntArrayRef sizes, at::ScalarType dtype) {
  const auto options = at::TensorOptions().dtype(dtype).device(at::kCPU);
  size_t bytes = c10::elementSize(dtype);
  for (const int64_t size : sizes) {
    TORCH_CHECK_VALUE(size >= 0, "found the size ", size, ", expected no negative number");
    bytes *= static_cast<size_t>(size);
  }
  if (bytes < kSmallest) return at::empty(sizes, options);
  const Block block = pool().take(bytes);
  const at::Tensor tensor =
      at::from_blob(block.data, sizes, [block](void*) { pool().give(block); }, options);
  // at::empty does the same, to reveal reads of uninitialised memory.
  const auto& context = at::globalContext();
  if (context.deterministicAlgorithms() && context.deterministicFillUninitializedMemory() &&
      at::isFloatingType(dtype)) {
    tensor.fill_(std::numeric_limits<double>::quiet_NaN());
  }
  return tensor;
}

}  // namespace fastadv

TORCH_LIBRARY_FRAGMENT(fastadv, m) {
  m.def("pooled_empty(Tensor like, int[] size, ScalarType dtype) -> Tensor");
}

TORCH_LIBRARY_IMPL(fastadv, CPU, m) {
  m.impl("pooled_empty", [](const at::Tensor&, at::IntArrayRef size, at::ScalarType dtype) {
    return fastadv::pooled_empty(size, dtype);
  });
}
