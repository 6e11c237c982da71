"""Algorithm 1: the phases, their optimisers, the step as a CUDA graph."""
