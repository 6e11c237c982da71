#include "brgemm.h"

#include <exception>
#include <vector>

#include "cpu_features.h"

namespace fastadv {

#if defined(FASTADV_AVX512)
namespace {

// PyTorch reports AMX only (could_pack), but its brgemm runs on AVX512_BF16 too, unless
// ONEDNN_MAX_CPU_ISA or torch.backends.mkldnn forbid it. So one is tried: a column times a row,
// both nonzero at one index of the depth only.
bool trial_product() {
  constexpr int64_t kDepth = 32, kColumns = 32, kChosen = 5;
  std::vector<c10::BFloat16> a(kBlockRows * kDepth, 0.0f), b(kDepth * kColumns, 0.0f);
  std::vector<float> c(kBlockRows * kColumns, -1.0f);
  for (int64_t i = 0; i < kBlockRows; ++i) a[i * kDepth + kChosen] = static_cast<float>(i + 1);
  for (int64_t j = 0; j < kColumns; ++j) {
    b[(kChosen / 2 * kColumns + j) * 2 + kChosen % 2] = static_cast<float>(j + 1);
  }
  try {
    const BrgemmScope scope;
    brgemm(kBlockRows, kColumns, kDepth, a.data(), kDepth, b.data(), kColumns, c.data(), kColumns,
           false);
  } catch (const std::exception&) {
    return false;
  }
  for (int64_t i = 0; i < kBlockRows; ++i) {
    for (int64_t j = 0; j < kColumns; ++j) {
      if (c[i * kColumns + j] != static_cast<float>((i + 1) * (j + 1))) return false;
    }
  }
  return true;
}

}  // namespace
#endif

bool has_brgemm() {
#if defined(FASTADV_AVX512)
  static const bool has =
      kCpuLevel == CpuLevel::kAvx512 && (at::native::cpublas::could_pack(at::kBFloat16) ||
                                         (cpu_features().avx512_bf16 && trial_product()));
  return has;
#else
  return false;
#endif
}

}  // namespace fastadv
