#include "cpu_features.h"

#include <cstdlib>
#include <cstring>

#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace fastadv {
namespace {

CpuLevel supported_level() {
  const CpuFeatures has = cpu_features();
  if (has.avx512f && has.avx512bw && has.avx512vl && has.avx2 && has.fma) return CpuLevel::kAvx512;
  if (has.avx2 && has.fma) return CpuLevel::kAvx2;
  return CpuLevel::kPortable;
}

CpuLevel chosen_level() {
  const CpuLevel supported = supported_level();
  const char* wanted = std::getenv("FASTADV_CPU_LEVEL");
  if (wanted == nullptr) return supported;
  CpuLevel limit = CpuLevel::kAvx512;
  if (std::strcmp(wanted, "portable") == 0) limit = CpuLevel::kPortable;
  if (std::strcmp(wanted, "avx2") == 0) limit = CpuLevel::kAvx2;
  return limit < supported ? limit : supported;
}

}  // namespace

const CpuLevel kCpuLevel = chosen_level();

const char* cpu_level_name() {
  switch (kCpuLevel) {
    case CpuLevel::kAvx512:
      return "avx512";
    case CpuLevel::kAvx2:
      return "avx2";
    default:
      return "portable";
  }
}

CpuFeatures cpu_features() {
  CpuFeatures has;
#if defined(__x86_64__)
  // __builtin_cpu_supports also asks whether the operating system saves the wide registers.
  __builtin_cpu_init();
  has.avx2 = __builtin_cpu_supports("avx2");
  has.fma = __builtin_cpu_supports("fma");
  has.avx512f = __builtin_cpu_supports("avx512f");
  has.avx512bw = __builtin_cpu_supports("avx512bw");
  has.avx512vl = __builtin_cpu_supports("avx512vl");
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  if (__get_cpuid(1, &eax, &ebx, &ecx, &edx)) has.f16c = has.avx2 && ((ecx >> 29) & 1);
  if (__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx)) {
    has.amx_bf16 = (edx >> 22) & 1;
    has.avx512_fp16 = has.avx512f && ((edx >> 23) & 1);
    has.amx_tile = (edx >> 24) & 1;
  }
  if (__get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx)) {
    has.avx512_bf16 = has.avx512f && ((eax >> 5) & 1);
  }
#endif
  return has;
}

}  // namespace fastadv
