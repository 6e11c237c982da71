"""The operations: each in a file of its own, the reference first."""

from fastadv.ops.adam import adam
from fastadv.ops.bias_gelu import bias_gelu
from fastadv.ops.cross_entropy import cross_entropy
from fastadv.ops.dropout_add_layer_norm import dropout_add_layer_norm
from fastadv.ops.embedding_adam import embedding_adam, embedding_adam_catch_up
from fastadv.ops.embedding_layer_norm import embedding_layer_norm
from fastadv.ops.linear import linear
from fastadv.ops.linear_bce import discriminator_loss, generator_loss, linear_bce
from fastadv.ops.masked_mean_pool import masked_mean_pool
from fastadv.ops.varlen_attention import varlen_attention

__all__ = [
    "adam",
    "bias_gelu",
    "cross_entropy",
    "discriminator_loss",
    "dropout_add_layer_norm",
    "embedding_adam",
    "embedding_adam_catch_up",
    "embedding_layer_norm",
    "generator_loss",
    "linear",
    "linear_bce",
    "masked_mean_pool",
    "varlen_attention",
]
