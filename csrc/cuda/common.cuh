// What the CUDA kernels share. The kernels and their launchers know raw pointers, sizes and a
// stream. PyTorch appears only in the thin bindings at the end of each file; they are hidden from
// the device passes of nvcc, which then need not read its headers.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>

#include "../acc_type.h"

namespace fastadv {
namespace cuda {

__device__ __forceinline__ float widen(float value) { return value; }
__device__ __forceinline__ double widen(double value) { return value; }
__device__ __forceinline__ float widen(__nv_bfloat16 value) { return __bfloat162float(value); }
__device__ __forceinline__ float widen(__half value) { return __half2float(value); }

__device__ __forceinline__ void narrow(float value, float* out) { *out = value; }
__device__ __forceinline__ void narrow(double value, double* out) { *out = value; }
__device__ __forceinline__ void narrow(float value, __nv_bfloat16* out) {
  *out = __float2bfloat16_rn(value);
}
__device__ __forceinline__ void narrow(float value, __half* out) { *out = __float2half_rn(value); }

// V elements that move in one transaction; V is 16 bytes' worth, or 1 where rows are not aligned.
template <typename T, int V>
struct alignas(sizeof(T) * V) Vec {
  T at[V];
};

template <typename T>
constexpr int kVector = 16 / sizeof(T);

inline bool aligned16(const void* pointer) {
  return reinterpret_cast<uintptr_t>(pointer) % 16 == 0;
}

constexpr int kWarp = 32;

template <typename Acc>
__device__ __forceinline__ Acc warp_sum(Acc value) {
#pragma unroll
  for (int offset = kWarp / 2; offset > 0; offset /= 2) {
    value += __shfl_xor_sync(0xffffffffu, value, offset);
  }
  return value;
}

template <typename I>
__host__ __device__ constexpr I ceil_div(I a, I b) {
  return (a + b - 1) / b;
}

}  // namespace cuda
}  // namespace fastadv

#if !defined(__CUDA_ARCH__)

// Keeps PyTorch from including a header that only its CUDA builds have.
#ifndef C10_CUDA_NO_CMAKE_CONFIGURE_FILE
#define C10_CUDA_NO_CMAKE_CONFIGURE_FILE
#endif
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include "../common.h"

namespace fastadv {
namespace cuda {

// Pointers to elements of T, the device's counterpart of a C++ type of PyTorch's.
template <typename T>
const T* data(const at::Tensor& x) {
  return static_cast<const T*>(x.const_data_ptr());
}
template <typename T>
T* mutable_data(const at::Tensor& x) {
  return static_cast<T*>(x.mutable_data_ptr());
}

// Calls `body` with a null pointer of the element type.
template <typename Body>
void dispatch(at::ScalarType dtype, const char* name, const Body& body) {
  switch (dtype) {
    case at::kFloat:
      return body(static_cast<float*>(nullptr));
    case at::kDouble:
      return body(static_cast<double*>(nullptr));
    case at::kHalf:
      return body(static_cast<__half*>(nullptr));
    case at::kBFloat16:
      return body(static_cast<__nv_bfloat16*>(nullptr));
    default:
      TORCH_CHECK_VALUE(false, name, " does not take dtype ", dtype);
  }
}

}  // namespace cuda
}  // namespace fastadv

#endif
