"""From an argument list to a command and its exit status."""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Sequence
from importlib.metadata import version
from types import ModuleType

from jsonargparse import ArgumentError, ArgumentParser, Namespace
from safetensors import SafetensorError

from fastadv.cli import (
    align,
    demo,
    embed,
    env,
    evaluate,
    experiment,
    export,
    predict,
    pretrain,
    train,
    tune,
)
from fastadv.cli.messages import one_line, only_our_messages, usage_mistake
from fastadv.cli.options import Help
from fastadv.cli.output import give_up_stdout
from fastadv.cli.signals import raised_signals

COMMANDS: dict[str, ModuleType] = {
    "train": train,
    "tune": tune,
    "experiment": experiment,
    "pretrain": pretrain,
    "evaluate": evaluate,
    "predict": predict,
    "embed": embed,
    "export": export,
    "align": align,
    "env": env,
    "demo": demo,
}
# Commands whose stopped runs can be resumed.
RESUMABLE = {"train": train, "tune": tune, "experiment": experiment, "pretrain": pretrain}
DONE, REFUSED = 0, 2
# The status that a shell reports for a program ended by a closed pipe, as in `cat FILE | head`.
PIPE_CLOSED = 128 + signal.SIGPIPE
# Bad input, a full disk, a missing package, a backend that cannot run, a loss that is not finite.
# Anything else is a bug in fastadv itself, and its traceback is needed.
_REFUSALS = (
    ValueError,
    OSError,
    ImportError,
    RuntimeError,
    FloatingPointError,
    MemoryError,
    SafetensorError,
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
        arguments: The command and its options; by default the process's own.

    Returns:
        The exit status: 0 done; 2 misused or refused, with one line on standard error; 130 after
        SIGINT and 143 after SIGTERM; 141 if the reader of standard output went away.

    Raises:
        SystemExit: With status 0, after --help or --version.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    speaker = f"fastadv {given[0]}" if given and given[0] in COMMANDS else "fastadv"
    options: Namespace | None = None

    def say(line: str) -> None:
        print(f"{speaker}: {line}", file=sys.stderr)

    if not given or not (given[0] in COMMANDS or given[0].startswith("-")):
        found = repr(given[0]) if given else "no command"
        say(f"found {found}, expected one of {', '.join(COMMANDS)} (see fastadv --help)")
        return REFUSED
    with raised_signals(), only_our_messages(speaker) as messages:
        try:
            chosen = parser().parse_args(given)
            options = chosen[chosen.subcommand]
            if options.get("quiet"):
                messages.setLevel(logging.WARNING)
            COMMANDS[chosen.subcommand].run(options)
            sys.stdout.flush()
        except ArgumentError as error:
            say(f"{usage_mistake(error)} (see {speaker} --help)")
            return REFUSED
        except BrokenPipeError:
            give_up_stdout()
            return PIPE_CLOSED
        except KeyboardInterrupt as stop:
            if options is not None and given[0] in RESUMABLE:
                say(RESUMABLE[given[0]].how_to_resume(stop, options, given))
            else:
                say(one_line(stop))
            return 128 + int(getattr(stop, "signal", signal.SIGINT))
        except _REFUSALS as error:
            if os.environ.get("FASTADV_TRACEBACK"):
                raise
            say(one_line(error))
            give_up_stdout()
            return REFUSED
    return DONE


def parser() -> ArgumentParser:
    """The whole command line; building it imports neither torch nor transformers."""
    whole = ArgumentParser(
        prog="fastadv",
        description="Language-adversarial finetuning of multilingual encoders (Keung, Lu and "
        "Bhardwaj, EMNLP 2019).",
        epilog="Exit status: 0 done; 2 misused or refused, and one line on standard error says "
        "why; 130 after Ctrl-C, 143 after SIGTERM; 141 if the reader of the output went away. "
        "With FASTADV_TRACEBACK=1 a refusal shows where in the code it arose.",
        version=version("fastadv"),
        formatter_class=Help,
        exit_on_error=False,
        allow_abbrev=False,
    )
    commands = whole.add_subcommands(required=True)
    for name, module in COMMANDS.items():
        part = ArgumentParser(
            description=module.DESCRIPTION,
            formatter_class=Help,
            exit_on_error=False,
            allow_abbrev=False,
        )
        module.add_options(part)
        commands.add_subcommand(name, part, help=module.SUMMARY)
    return whole
