// The module fastadv._C: importing it registers the operations, and it says how it was built.
#include <pybind11/pybind11.h>
#include <torch/version.h>

#include <string>

#include "cpu/cpu_features.h"

// Set by setup.py and CMakeLists.txt.
#ifndef FASTADV_CUDA_VERSION
#define FASTADV_CUDA_VERSION ""
#endif
#ifndef FASTADV_CUDA_ARCHS
#define FASTADV_CUDA_ARCHS ""
#endif
#ifndef FASTADV_CXX_FLAGS
#define FASTADV_CXX_FLAGS ""
#endif

namespace py = pybind11;

namespace {

py::object text_or_none(const char* text) {
  return *text == '\0' ? py::object(py::none()) : py::object(py::str(text));
}

std::string compiler() {
#if defined(__clang__)
  return "clang " __clang_version__;
#elif defined(__GNUC__)
  return "gcc " __VERSION__;
#else
  return "unknown";
#endif
}

py::dict build_info() {
  py::dict info;
  info["torch"] = TORCH_VERSION;
  info["compiler"] = compiler();
  info["cuda"] = text_or_none(FASTADV_CUDA_VERSION);
  info["cuda_archs"] = text_or_none(FASTADV_CUDA_ARCHS);
  info["cxx_flags"] = FASTADV_CXX_FLAGS;
#if defined(_OPENMP)
  info["openmp"] = true;
#else
  info["openmp"] = false;
#endif
  info["cpu_level"] = fastadv::cpu_level_name();
  return info;
}

py::dict cpu_features() {
  const fastadv::CpuFeatures has = fastadv::cpu_features();
  py::dict features;
  features["avx2"] = has.avx2;
  features["fma"] = has.fma;
  features["f16c"] = has.f16c;
  features["avx512f"] = has.avx512f;
  features["avx512bw"] = has.avx512bw;
  features["avx512vl"] = has.avx512vl;
  features["avx512_bf16"] = has.avx512_bf16;
  features["avx512_fp16"] = has.avx512_fp16;
  features["amx_tile"] = has.amx_tile;
  features["amx_bf16"] = has.amx_bf16;
  return features;
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "Native operations of fastadv; importing this module registers them with PyTorch.";
  m.def("build_info", &build_info, "How the extension was built, and the CPU level in use.");
  m.def("cpu_features", &cpu_features, "What the processor can do, as a dict of bool.");
}
