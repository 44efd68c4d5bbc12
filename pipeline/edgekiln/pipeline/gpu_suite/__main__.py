"""The command line: stdout carries the table, stderr the progress, ``--out`` the document."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from edgekiln.pipeline.gpu_suite.models import MODELS
from edgekiln.pipeline.gpu_suite.suite import (
    FAMILIES,
    SuiteOptions,
    names_of,
    prepare,
    run_suite,
    write_document,
)
from edgekiln.pipeline.gpu_suite.table import render

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code: 0 nothing failed (skipped is not failed), 3 something failed, 5 there is no GPU."""
    parsed = _parse(arguments)
    options = SuiteOptions(models=parsed.model, given=parsed.models, quick=parsed.quick, families=parsed.only)
    began = time.monotonic()

    def say(text: str) -> None:
        print(f"[{time.monotonic() - began:6.0f} s] {text}", file=sys.stderr, flush=True)

    if parsed.prepare is not None:
        document, code = prepare(options, parsed.prepare, say=say)
    else:
        document, code = run_suite(options, say=say)
        write_document(document, parsed.out)
    print(render(document))
    return int(code)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m edgekiln.pipeline.gpu_suite", description=__doc__)
    goal = parser.add_mutually_exclusive_group(required=True)
    goal.add_argument("--out", type=Path, metavar="FILE", help="run everything; write this JSON document")
    goal.add_argument(
        "--prepare", type=Path, metavar="FOLDER", help="write graphs and TensorRT-RTX engines for --models"
    )
    parser.add_argument(
        "--models", type=Path, metavar="FOLDER", help="take files from here that --prepare wrote"
    )
    parser.add_argument("--quick", action="store_true", help="five rounds, torch.compile's default mode")
    parser.add_argument("--only", type=_families, default=FAMILIES, metavar=",".join(FAMILIES))
    parser.add_argument("--model", type=_models, default=("lite0", "resnet50"), metavar=",".join(MODELS))
    parsed = parser.parse_args(arguments)
    if parsed.models is not None and not parsed.models.is_dir():
        parser.error(f"--models: there is no folder {parsed.models}")
    return parsed


def _families(text: str) -> tuple[str, ...]:
    return _names(text, FAMILIES)


def _models(text: str) -> tuple[str, ...]:
    return _names(text, tuple(MODELS))


def _names(text: str, known: Sequence[str]) -> tuple[str, ...]:
    try:
        return names_of(text, known)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


if __name__ == "__main__":
    sys.exit(main())
