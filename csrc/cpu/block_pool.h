// Large CPU tensors from memory that is kept between uses.
//
// The C library gives blocks of this size back to the system as soon as they are freed, and every
// page of the next one costs a fault: of a training step on a CPU that was a third. Blocks here
// stay, and ask for large pages.
#pragma once

#include <ATen/core/Tensor.h>

namespace fastadv {

// Uninitialised and contiguous; its memory returns to the pool with the last reference to it.
at::Tensor pooled_empty(at::IntArrayRef sizes, at::ScalarType dtype);

}  // namespace fastadv
