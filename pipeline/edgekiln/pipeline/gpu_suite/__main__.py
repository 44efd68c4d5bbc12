"""The command line: stdout carries the table, stderr the plan and the progress, ``--out`` the document."""

from __future__ import annotations

import argparse
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from edgekiln.pipeline.gpu_suite.context import DEFAULT_MODELS, FAMILIES, SuiteOptions
from edgekiln.pipeline.gpu_suite.document import names_of, write_document
from edgekiln.pipeline.gpu_suite.networks import MODELS
from edgekiln.pipeline.gpu_suite.plan import DEFAULT_BUDGET_S
from edgekiln.pipeline.gpu_suite.preparation import prepare
from edgekiln.pipeline.gpu_suite.suite import run_suite
from edgekiln.pipeline.gpu_suite.table import render
from edgekiln.runtime.errors import EdgekilnError, ExitCode

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code: 0 nothing failed (skipped is not failed), 3 something failed, 5 there is no GPU, 130 it was ended."""
    parsed = _parse(arguments)
    options = SuiteOptions(
        models=parsed.model,
        given=parsed.models,
        quick=parsed.quick,
        families=parsed.only,
        budget_s=parsed.budget,
    )
    began = time.monotonic()

    def say(text: str) -> None:
        print(f"[{time.monotonic() - began:6.0f} s] {text}", file=sys.stderr, flush=True)

    # Whoever takes the machine away asks by this signal first: the children must end, and what was measured is kept.
    before = signal.signal(signal.SIGTERM, _end)
    try:
        document, code = _run(parsed, options, say)
    except EdgekilnError as error:
        print(error, file=sys.stderr)
        return int(error.exit_code)
    except KeyboardInterrupt:
        say(f"ended; what was measured is in {parsed.out}" if parsed.out else "ended; run it again to go on")
        return int(ExitCode.INTERRUPTED)
    finally:
        signal.signal(signal.SIGTERM, before)
    print(render(document))
    return int(code)


def _run(parsed: argparse.Namespace, options: SuiteOptions, say: Any) -> tuple[dict[str, Any], ExitCode]:
    if parsed.prepare is not None:
        return prepare(options, parsed.prepare, say=say, wheels=parsed.wheels)
    return run_suite(options, say=say, save=lambda document: write_document(document, parsed.out))


def _end(number: int, frame: object) -> NoReturn:
    raise KeyboardInterrupt


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m edgekiln.pipeline.gpu_suite", description=__doc__)
    goal = parser.add_mutually_exclusive_group(required=True)
    goal.add_argument("--out", type=Path, metavar="FILE", help="run what fits; write this JSON document")
    goal.add_argument(
        "--prepare", type=Path, metavar="FOLDER", help="make all inputs there, in parts, for --models"
    )
    parser.add_argument(
        "--models", type=Path, metavar="FOLDER", help="take the parts here that --prepare made"
    )
    parser.add_argument(
        "--wheels", type=Path, metavar="FOLDER", help="with --prepare: bring these *.whl along"
    )
    parser.add_argument(
        "--budget", type=_seconds, default=DEFAULT_BUDGET_S, metavar="SECONDS", help="for all parts together"
    )
    parser.add_argument("--quick", action="store_true", help="five rounds, torch.compile's default mode")
    parser.add_argument("--only", type=_families, default=FAMILIES, metavar=",".join(FAMILIES))
    parser.add_argument("--model", type=_models, default=DEFAULT_MODELS, metavar=",".join(MODELS))
    parsed = parser.parse_args(arguments)
    for name in ("models", "wheels"):
        folder = getattr(parsed, name)
        if folder is not None and not folder.is_dir():
            parser.error(f"--{name}: there is no folder {folder}")
    if parsed.wheels is not None and parsed.prepare is None:
        parser.error("--wheels goes with --prepare; --models finds them among its parts")
    return parsed


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 1 <= seconds < float("inf"):
        raise argparse.ArgumentTypeError(f"got {text}, wanted seconds, 1 or more")
    return seconds


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
