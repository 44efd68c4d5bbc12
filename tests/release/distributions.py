"""Builds sdist and wheel, the wheel from the sdist, and has twine read their metadata. It installs nothing."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import click

__all__ = ["Distributions", "build_distributions", "check_metadata", "run_checked"]


@dataclass(frozen=True)
class Distributions:
    """The two files of one version."""

    wheel: Path
    sdist: Path


def build_distributions(source: Path, out: Path) -> Distributions:
    """Build both into ``out``. The wheel is made from the unpacked sdist, so an sdist that lacks a file is found.

    Nothing is fetched: hatchling is taken from this environment.
    """
    run_checked([sys.executable, "-m", "build", "--no-isolation", "--outdir", out, source])
    [wheel], [sdist] = out.glob("edgekiln-*.whl"), out.glob("edgekiln-*.tar.gz")
    return Distributions(wheel, sdist)


def check_metadata(distributions: Distributions) -> None:
    """What an index would refuse, and what it would only warn of."""
    run_checked(
        [sys.executable, "-m", "twine", "check", "--strict", distributions.wheel, distributions.sdist]
    )


def run_checked(command: Sequence[str | Path], **options: object) -> str:
    """What a command printed on stdout; a ClickException with all that it said where it fails."""
    done = subprocess.run(command, capture_output=True, text=True, check=False, **options)  # type: ignore[call-overload]
    if done.returncode:
        line = " ".join(map(str, command))
        raise click.ClickException(f"{line}: exit code {done.returncode}\n{done.stdout}{done.stderr}")
    return str(done.stdout)
