"""The sample corpora that `fastadv demo` runs on, written for this project.

news/ and software/: documents of four topics, the latter descriptions of imagined packages.
entities/: words with entity tags, CoNLL columns in IOB2.
"""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).parent
SOURCE = "en"
DOCUMENT_LANGUAGES = ("de", "es", "fr", "ja")
ENTITY_LANGUAGES = ("de", "es")


def documents(sample: str, name: str) -> Path:
    """A file of the sample "news" or "software": en.train, en.dev, LANG.test or LANG.unlabeled.

    The documents of every LANG.test are translations of the documents of en.test, line by line.
    """
    return ROOT / sample / name


def entities(name: str) -> Path:
    """A file of the NER sample: en.train or LANG.test."""
    return ROOT / "entities" / name
