"""`fastadv env`."""

from __future__ import annotations

import json

from jsonargparse import ArgumentParser, Namespace

from fastadv.cli.options import add_json

SUMMARY = "show versions, hardware and backends"
DESCRIPTION = (
    "Versions, hardware, and for every operation the backend that runs and why the others cannot."
)


def add_options(parser: ArgumentParser) -> None:
    add_json(parser)


def run(options: Namespace) -> None:
    from fastadv import environment

    if options.json:
        print(json.dumps(environment.collect(), indent=2))
    else:
        print(environment.report())
