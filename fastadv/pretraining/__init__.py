"""Pretraining by masked-language modelling, with or without the language adversary."""
