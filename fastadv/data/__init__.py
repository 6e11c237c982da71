"""Readers of labelled and unlabelled text, and the examples that they give."""

from fastadv.data.data_file import DataFile
from fastadv.data.examples import Data, as_documents, as_sentences, as_texts, iter_texts
from fastadv.data.files import read_conll, read_documents, read_texts
from fastadv.data.pairs import read_pairs
from fastadv.data.records import Document, Sentence, place, to_iob2

__all__ = [
    "Data",
    "DataFile",
    "Document",
    "Sentence",
    "as_documents",
    "as_sentences",
    "as_texts",
    "iter_texts",
    "place",
    "read_conll",
    "read_documents",
    "read_pairs",
    "read_texts",
    "to_iob2",
]
