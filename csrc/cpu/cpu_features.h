// What the processor at hand can do, asked once when the library is loaded.
#pragma once

namespace fastadv {

enum class CpuLevel : int { kPortable = 0, kAvx2 = 1, kAvx512 = 2 };

// The widest level that both processor and operating system support; the environment variable
// FASTADV_CPU_LEVEL (portable, avx2, avx512) can lower it, which the tests use.
extern const CpuLevel kCpuLevel;

const char* cpu_level_name();

struct CpuFeatures {
  bool avx2 = false;
  bool fma = false;
  bool f16c = false;
  bool avx512f = false;
  bool avx512bw = false;
  bool avx512vl = false;
  bool avx512_bf16 = false;
  bool avx512_fp16 = false;
  bool amx_tile = false;
  bool amx_bf16 = false;
};

CpuFeatures cpu_features();

}  // namespace fastadv
