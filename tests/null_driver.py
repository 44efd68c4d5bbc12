"""A CUDA driver without a device: compiles it, and runs cases on it in a process of their own.

The driver stands in ``tests/runtime/cuda/fake_libcuda*.c``; what it promises is told there. A case is a function of
``null_driver_cases``. Many cases share one start of Python: each runs in a fork of it, so that a crash or a hang is
the outcome of that case and of no other.

``EDGEKILN_TEST_PACKAGES`` may name folders with packages that are not installed, which are found first: for example
one made by ``pip install --target FOLDER tensorrt-lean``.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import pytest
from tests_support import ROOT

__all__ = ["LAYERS", "Case", "NullDriver", "Outcome", "build_driver", "require"]

LAYERS = {"libcuda": None, "pycuda": "pycuda"}
"""What ``open_cuda`` can be asked for, and the package that it needs."""

SOURCES = ROOT / "tests" / "runtime" / "cuda"
PACKAGES = [folder for folder in os.environ.get("EDGEKILN_TEST_PACKAGES", "").split(os.pathsep) if folder]
TIMEOUT_SECONDS = 280


def build_driver(folder: Path, *macros: str) -> Path:
    """Compile ``libcuda.so.1`` into a folder; skips, with the reason, where there is no compiler."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("There is no C compiler.")
    library = folder / "libcuda.so.1"
    options = ["-O1", "-shared", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra", "-Werror"]
    options += ["-Wl,-z,defs", *(f"-D{macro}" for macro in macros)]
    sources = sorted(map(str, SOURCES.glob("fake_libcuda*.c")))
    subprocess.run([compiler, *options, "-o", str(library), *sources, "-lpthread", "-ldl"], check=True)
    return library


def require(distribution: str | None) -> None:
    """Skips, with the reason, where a package is not installed."""
    if distribution and not any(distributions(name=distribution, path=[*PACKAGES, *sys.path])):
        pytest.skip(f"{distribution} is not installed.")


@dataclass(frozen=True)
class Case:
    """A function of ``null_driver_cases``, its arguments, and settings of the driver (``{"FAKE_EAGER": "1"}``)."""

    function: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, str] = field(default_factory=dict)
    seconds: int = 20

    def __str__(self) -> str:
        values = [*self.arguments.values(), *(f"{name}={value}" for name, value in self.settings.items())]
        return f"{self.function}({', '.join(map(str, values))})"


@dataclass(frozen=True)
class Outcome:
    """What became of a case.

    Attributes:
        answer: what its function returned.
        failure: the traceback of an exception, ``signal 11`` (a crash), ``signal 14`` (a hang), or ``None``.
    """

    answer: Any
    failure: str | None


class NullDriver:
    """The compiled driver, and processes that find it as ``libcuda.so.1``."""

    def __init__(self, library: Path, work: Path) -> None:
        self.library, self._work = library, work

    def environment(self) -> dict[str, str]:
        """Variables of a process that is to find the driver."""
        path = [*PACKAGES, str(ROOT / "tests"), *filter(None, sys.path)]
        return {
            **{name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"},
            "LD_LIBRARY_PATH": str(self.library.parent),
            "PYTHONPATH": os.pathsep.join(path),
            "EDGEKILN_CACHE": str(self._work / "cache"),
            "OMP_NUM_THREADS": "1",
        }

    def run(self, cases: Sequence[Case]) -> list[Outcome]:
        """Run cases one after another, each in a fork of one fresh process."""
        ended = subprocess.run(
            [sys.executable, "-m", "null_driver_cases"],
            input=json.dumps([asdict(case) for case in cases]),
            capture_output=True,
            text=True,
            timeout=TIMEOUT_SECONDS,
            cwd=self._work,
            env=self.environment(),
            check=False,
        )
        assert ended.returncode == 0, ended.stderr
        return [Outcome(**values) for values in json.loads(ended.stdout)]
