"""The operations: each in a file of its own, the reference first."""

from fastadv.ops.linear_bce import discriminator_loss, generator_loss, linear_bce
from fastadv.ops.masked_mean_pool import masked_mean_pool

__all__ = ["discriminator_loss", "generator_loss", "linear_bce", "masked_mean_pool"]
