"""Choosing a step of a run without labels in the target language.

The paper (Keung, Lu and Bhardwaj, EMNLP 2019, section 3.1) chooses on English dev and leaves open
what would choose better. `signals` are measured on unlabelled text during a run, a small
function and a module each; `criteria` turn them into a step.
"""

from fastadv.selection.criteria import (
    CRITERIA,
    ENSEMBLES,
    MEANINGS,
    ORACLE,
    chosen_step,
    values,
)
from fastadv.selection.discriminator import discriminator_scores
from fastadv.selection.entropy import mean_entropy, mutual_information
from fastadv.selection.neighborhood_density import soft_neighborhood_density
from fastadv.selection.nuclear_norm import batch_nuclear_norm
from fastadv.selection.probe import probe_accuracy

__all__ = [
    "CRITERIA",
    "ENSEMBLES",
    "MEANINGS",
    "ORACLE",
    "batch_nuclear_norm",
    "chosen_step",
    "discriminator_scores",
    "mean_entropy",
    "mutual_information",
    "probe_accuracy",
    "soft_neighborhood_density",
    "values",
]
