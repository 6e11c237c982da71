"""Folders in the layouts of the paper's corpora, made up, small, with their quirks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import corpora
import yaml

CLASSES = ("CCAT", "ECAT", "GCAT", "MCAT")
GERMAN_TEXT = "Der Kurs von Münchner »Straße« stieg's um 3"


def mldoc(folder: Path, languages: Sequence[str] = ("german", "japanese")) -> Path:
    """Texts as bytes literals in one language and plain in others; a test set a few short."""
    folder.mkdir(parents=True)
    for suffix, count, seed in ((".train.1000", 24, 1), (".dev", 12, 2), (".test", 12, 3)):
        corpora.write(folder / f"english{suffix}", _classes(count, seed))
    for number, language in enumerate(languages):
        for suffix, count in ((".train.10000", 16), (".dev", 9), (".test", 11 - number)):
            seed = 10 * (number + 1) + count
            content = corpora.mldoc(count, literal=number == 0, seed=seed)
            corpora.write(folder / f"{language}{suffix}", content)
    german = folder / "german.test"
    german.write_text(german.read_text("utf-8") + f"MCAT\t{GERMAN_TEXT.encode()!r}\n", "utf-8")
    return folder


def _classes(count: int, seed: int) -> str:
    """With every class, so that labels are the same whatever was drawn."""
    lines = corpora.mldoc(count, seed=seed).splitlines(keepends=True)
    return "".join(
        f"{CLASSES[number % 4]}\t{line.partition(chr(9))[2]}" for number, line in enumerate(lines)
    )


def conll(folder: Path) -> Path:
    """English in IOB1, German in IOB1 and latin-1, Spanish and Dutch in IOB2 as given out."""
    folder.mkdir(parents=True)
    for seed, part in enumerate(("train", "testa", "testb")):
        sentences = corpora.corpus(20, 160, longest=60 if part == "train" else 0, seed=seed + 1)
        corpora.write(folder / f"eng.{part}", corpora.conll_2003(sentences))
        # What latin-1 has no sign for stands in no German file.
        german = corpora.conll_2003_german(sentences)
        corpora.write(folder / f"deu.{part}", german, "latin-1")
        corpora.write(folder / f"esp.{part}", corpora.conll_2002_spanish(sentences))
        corpora.write(folder / f"ned.{part}", corpora.conll_2002_dutch(sentences), "latin-1")
    return folder


def written_down(folder: Path, model: Path, **changes: object) -> Path:
    """experiment.yaml in a folder with the documents of `mldoc`, and that folder's path."""
    mldoc(folder)
    experiment = {
        "name": "made up",
        "task": "classification",
        "model": str(model),
        "source": {
            "language": "en",
            "train": "english.train.1000",
            "dev": "english.dev",
            "test": "english.test",
        },
        "targets": {
            "de": {
                "unlabeled": "german.train.10000",
                "test": "german.test",
                "heldout": "german.dev",
                "translations": ["pairs.en", "pairs.de"],
            },
            "ja": {
                "unlabeled": {"path": "japanese.train.10000", "format": "documents"},
                "test": "japanese.test",
            },
        },
        "seeds": [0, 3],
        "threads": 1,
        "config": {
            "steps": 4,
            "batch_size": 3,
            "max_length": 24,
            "eval_every": 2,
            "log_every": 1,
            "checkpoint_every": 1,
            "precision": "fp32",
            "lr_task": 1e-3,
            "lr_discriminator": 1e-2,
            "lr_generator": 1e-4,
        },
        **changes,
    }
    (folder / "pairs.en").write_text("rain falls\nthe sun returns\na song\n")
    (folder / "pairs.de").write_text("regen fällt\ndie sonne kommt\nein lied\n", "utf-8")
    path = folder / "experiment.yaml"
    path.write_text(yaml.safe_dump(experiment, sort_keys=False), "utf-8")
    return path
