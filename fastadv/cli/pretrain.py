"""`fastadv pretrain`."""

from __future__ import annotations

import dataclasses
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from jsonargparse import ArgumentParser, Namespace

from fastadv.cli.messages import hush, one_line
from fastadv.cli.options import add_options_file, add_quiet, add_repeated, each
from fastadv.cli.run_folder import recorded
from fastadv.pretraining.config import PretrainConfig

if TYPE_CHECKING:
    from fastadv.pretraining.corpus import Corpus

SUMMARY = "pretrain a small multilingual BERT"
DESCRIPTION = (
    "Pretrain a BERT by masked-language modelling on plain text of some languages, with or without "
    "the language adversary, which the paper (Keung, Lu and Bhardwaj, EMNLP 2019) names in its "
    "conclusion as future work. The model in OUTPUT/last loads with transformers and with fastadv "
    "train."
)


def add_options(parser: ArgumentParser) -> None:
    add_options_file(parser)
    add_repeated(
        parser,
        "--text",
        "LANG=FILE",
        "plain text, a paragraph a line, also .gz, .bz2 or .xz; once for each file; a run "
        "that is resumed reads OUTPUT/corpus.npz and OUTPUT/tokenizer instead",
    )
    parser.add_argument(
        "--tokenizer",
        type=str | None,
        default=None,
        help="folder of a fast tokenizer with [MASK]; by default a cased WordPiece vocabulary is "
        "trained on the text",
    )
    parser.add_argument(
        "--output",
        type=str,
        required=True,
        help="folder of the run: last/, metrics.jsonl, run.yaml, tokenizer/, corpus.npz and the "
        "checkpoints",
    )
    parser.add_argument(
        "--resume", action="store_true", help="resume the run in --output where it stopped"
    )
    parser.add_argument(
        "--adversarial",
        action="store_true",
        help="the same as --config.adversary source: phases D and G beside masked-language "
        "modelling, the source language against the rest",
    )
    parser.add_argument(
        "--seconds",
        type=float | None,
        default=None,
        help="stop with a checkpoint after so long; the same command with --resume continues",
    )
    parser.add_argument(
        "--prepare_only",
        action="store_true",
        help="write vocabulary, corpus and settings, and no more; on another machine "
        "`python -m fastadv.pretraining OUTPUT` does the rest with the core packages alone",
    )
    add_quiet(parser)
    parser.add_class_arguments(PretrainConfig, "config", help="Settings")


def run(options: Namespace) -> None:
    config = PretrainConfig(**options.config.as_dict())
    if options.adversarial and config.adversary == "none":
        config = dataclasses.replace(config, adversary="source")
    output = Path(options.output)
    _refuse_other_run(output, options.resume)
    hush(options.quiet)
    from fastadv.pretraining.run import CORPUS, PretrainingRun, write_settings

    with recorded(output, options):
        if not (output / CORPUS).exists():
            _prepare(options, config, output)
        if options.prepare_only:
            write_settings(output, config)
            print(f"prepared {output}")
            return
        going = PretrainingRun(output, options.quiet, config=config)
        write_settings(output, config)
        done = going.go(options.seconds)
    step = going.trainer.step_count
    if done:
        print(f"model {output / 'last'}")
    else:
        print(f"stopped after step {step} of {config.steps}, --resume continues it")


def how_to_resume(stop: BaseException, options: Namespace, given: Sequence[str]) -> str:
    """The line after a signal: what happened and the command that resumes the run."""
    said, output = one_line(stop), Path(options.output)
    if not any(output.glob("checkpoint*.safetensors")):
        return f"{said}; there is no checkpoint yet, the same command begins anew"
    resumed = [*given] if "--resume" in given else [*given, "--resume"]
    return f"{said}; resume with: {shlex.join(['fastadv', *resumed])}"


def _refuse_other_run(output: Path, resume: bool) -> None:
    from fastadv.run.folder import CHECKPOINT, LAST, METRICS

    for folder in (*reversed(output.parents), output):
        if folder.exists() and not folder.is_dir():
            raise ValueError(f"{folder}: found a file, expected a folder for the run")
    for name in (CHECKPOINT, METRICS, LAST):
        if not resume and (output / name).exists():
            raise ValueError(
                f"{output}: found {name} of another run, expected a new folder, or --resume to go "
                "on with it"
            )


def _prepare(options: Namespace, config: PretrainConfig, output: Path) -> None:
    from fastadv.model_io.loading import load_tokenizer
    from fastadv.pretraining.corpus import Corpus
    from fastadv.pretraining.run import CORPUS, TOKENIZER
    from fastadv.pretraining.text_files import TextFiles
    from fastadv.pretraining.vocabulary import train_vocabulary

    files = _files(options)
    texts = TextFiles(files)
    if options.tokenizer is None:
        _say(options, "training the vocabulary")
        tokenizer = train_vocabulary(texts, config.vocabulary_size, config.exponent)
    else:
        tokenizer = load_tokenizer(options.tokenizer)
    _say(options, "tokenising")
    corpus = Corpus.of(texts, tokenizer, config.max_length)
    tokenizer.save_pretrained(output / TOKENIZER)
    corpus.save(output / CORPUS)
    _say(options, f"{_size(corpus)}, {len(tokenizer):,} word pieces")


def _files(options: Namespace) -> dict[str, list[str]]:
    files: dict[str, list[str]] = {}
    for given in each(options.text):
        language, equals, path = given.partition("=")
        if not (language and equals and path):
            raise ValueError(f"--text is {given!r}, expected LANG=FILE")
        files.setdefault(language, []).append(path)
    if not files:
        raise ValueError("found no --text, expected LANG=FILE at least once")
    return files


def _size(corpus: Corpus) -> str:
    counts = {name: len(corpus.input_ids[name]) for name in corpus.languages}
    shares = ", ".join(f"{name} {count / 1e6:.1f}" for name, count in counts.items())
    return f"{sum(counts.values()) / 1e6:.1f} M tokens ({shares})"


def _say(options: Namespace, line: str) -> None:
    if not options.quiet:
        print(line, file=sys.stderr, flush=True)
