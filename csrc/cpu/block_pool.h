// Large CPU tensors from memory that is kept between uses.
//
// The C library returns blocks of this size to the system as soon as they are freed, and every page
// of the next block costs a page fault: that was a third of a training step on a CPU. The pool
// keeps its blocks, and asks for large pages.
#pragma once

#include <ATen/core/Tensor.h>

namespace fastadv {

// Uninitialised and contiguous; its memory returns to the pool with the last reference to it.
at::Tensor pooled_empty(at::IntArrayRef sizes, at::ScalarType dtype);

}  // namespace fastadv
