"""Readers of labelled and unlabelled text, and the examples that they give."""

from fastadv.data.conll import read_conll
from fastadv.data.documents import read_documents
from fastadv.data.examples import Data, as_documents, as_sentences, as_texts
from fastadv.data.records import Document, Sentence, to_iob2
from fastadv.data.text import read_texts

__all__ = [
    "Data",
    "Document",
    "Sentence",
    "as_documents",
    "as_sentences",
    "as_texts",
    "read_conll",
    "read_documents",
    "read_texts",
    "to_iob2",
]
