"""Asks a bundle's canaries under other library versions, on masked and on emulated processors, and prints a table.

    PYTHONPATH=tests python -m canary_study [BUNDLE...] [--oldest-and-current] [--venvs FOLDER]

Without a bundle it makes one first: the tests' tiny network with FP32 and INT8 variants of both libraries. For each
other version of a library than the one that is installed here a virtual environment of its own is made (`pip` fetches
it: the only part that needs the network), and the runtime of this checkout is asked there in a fresh process, with
several numbers of threads. Where OpenVINO has a switch that masks features of the processor, that is turned; where
`qemu-x86_64-static` is installed, older processors are emulated for the version that runs here. A canary that fails
anywhere is a false alarm, or has found a wrong kernel: the command then exits 3. What could not be tried is a row
that says why.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests_support import TINY_RECIPE, write_pictures

from edgekiln.pipeline.recipe import load_recipe
from edgekiln.pipeline.run import run_recipe
from edgekiln.pipeline.workspace.progress import SilentProgress

__all__ = ["Condition", "Row", "ask", "conditions_here", "describe_rows", "main"]

ROOT = Path(__file__).parents[1]
VERSIONS = {"onnxruntime": ("1.20", "1.27", ""), "openvino": ("2025.3", "")}
"""By library: the oldest that pyproject.toml allows, one between, and the one that is installed, without a number."""
BACKENDS = {"onnxruntime": "onnxruntime-cpu", "openvino": "openvino"}
MASKS = ("AVX512_CORE", "AVX2", "SSE41")
"""Values of ONEDNN_MAX_CPU_ISA, which OpenVINO's kernels heed: without VNNI and AMX, without AVX-512, without AVX."""
EMULATED = ("Nehalem", "Haswell")
"""Models of qemu: SSE 4.2 alone, and AVX2 without AVX-512 or VNNI."""
EMULATOR = "qemu-x86_64-static"
_CHILD_SECONDS = 1800
OPENVINO_VARIANTS = """
[[variants]]
name = "fp32-openvino"
precision = "fp32"
backend = "openvino"
[[variants]]
name = "int8-openvino"
precision = "int8"
backend = "openvino"
calibration_images = 48
"""

_CHILD = """
import json, sys
from edgekiln.runtime.backends import open_session
from edgekiln.runtime.bundles.bundle import open_bundle
from edgekiln.runtime.bundles.canaries import check_canaries
from edgekiln.runtime.errors import EdgekilnError
bundle = open_bundle(sys.argv[1])
for variant in bundle.variants:
    if variant.canaries is None or variant.backend != sys.argv[2]:
        continue
    for threads in map(int, sys.argv[3].split(",")):
        row = {"variant": variant.name, "threads": threads, "version": ""}
        try:
            session = open_session(variant.backend, [bundle.read(f) for f in variant.files], threads=threads)
            result = check_canaries(session, variant.canaries)
            session.close()
            row |= {"worst": result.worst, "difference": result.max_difference, "problem": result.problem}
        except EdgekilnError as error:
            row |= {"worst": None, "difference": None, "problem": error.message}
        row["version"] = sys.modules[sys.argv[4]].__version__.partition("-")[0]
        print(json.dumps(row), flush=True)
"""


@dataclass(frozen=True)
class Condition:
    """Where canaries are asked: which Python, which library, what is masked or emulated."""

    python: str
    library: str
    setting: str = "as it is"
    before: tuple[str, ...] = ()
    environment: dict[str, str] = field(default_factory=dict)
    threads: tuple[int, ...] = (1, 2)


@dataclass(frozen=True)
class Row:
    """What came of one variant with one number of threads. ``worst`` and ``difference`` are ``CanaryResult``'s."""

    condition: Condition
    version: str
    variant: str
    threads: int
    worst: float | None
    difference: float | None
    problem: str


def ask(bundle: Path, condition: Condition) -> list[Row]:
    """The rows of all variants of the library, by a fresh process; a process that dies is a row too."""
    command = [
        *(*condition.before, condition.python, "-c", _CHILD, str(bundle)),
        *(BACKENDS[condition.library], ",".join(map(str, condition.threads)), condition.library),
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "runtime"), **condition.environment}
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=_CHILD_SECONDS, check=False
    )
    rows = [Row(condition, **json.loads(line)) for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode != 0:
        said = (done.stderr.strip().splitlines() or ["nothing"])[-1]
        rows.append(
            Row(condition, "?", "?", 0, None, None, f"the process ended with {done.returncode}: {said}")
        )
    return rows


def conditions_here(library: str) -> Iterator[Condition]:
    """The library that is installed here: as it is, masked, and on emulated processors where there is an emulator."""
    yield Condition(sys.executable, library)
    if library == "openvino":
        for mask in MASKS:
            yield Condition(
                sys.executable, library, f"ONEDNN_MAX_CPU_ISA={mask}", (), {"ONEDNN_MAX_CPU_ISA": mask}
            )
    if shutil.which(EMULATOR):
        for model in EMULATED:
            yield Condition(
                sys.executable, library, f"emulated {model}", (EMULATOR, "-cpu", model), threads=(1,)
            )


def make_environment(folder: Path, library: str, version: str) -> str | None:
    """The Python of a virtual environment with the runtime's needs and one library; what is there is kept.

    Without a version it is this one. ``None`` where pip cannot install it, which is told on stderr.
    """
    if not version:
        return sys.executable
    place = folder / f"{library}-{version}"
    python, whole = place / "bin" / "python", place / "whole"
    if not whole.exists():  # else pip was not interrupted
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(place)], check=True)
        wanted = f"{library}=={version}.*"
        pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        if subprocess.run([*pip, "numpy", "Pillow", wanted], check=False).returncode:
            print(f"NOT TRIED: {wanted}, which pip cannot install here", file=sys.stderr)
            return None
        whole.touch()
    return str(python)


def make_bundle(folder: Path) -> Path:
    """A run of the tests' tiny network with variants of both libraries; returns its bundle."""
    recipe = folder / "canaries.toml"
    write_pictures(folder / "pictures")
    recipe.write_text(TINY_RECIPE.replace("[gate]", OPENVINO_VARIANTS + "[gate]"))
    bundle = run_recipe(load_recipe(recipe), folder / "runs", SilentProgress()).bundle
    assert bundle is not None
    return bundle


def describe_rows(rows: Sequence[Row]) -> str:
    """A Markdown table: one row for each variant under each condition, over its numbers of threads."""
    lines = [
        "| library | processor | variant | largest difference, logits | share of what may differ | canaries |",
        "|---|---|---|---|---|---|",
    ]
    groups: dict[tuple[str, str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault(
            (f"{row.condition.library} {row.version}", row.condition.setting, row.variant), []
        ).append(row)
    for (library, setting, variant), group in groups.items():
        problems = sorted({row.problem for row in group if row.problem})
        answered = [(row.difference, row.worst) for row in group if row.worst is not None]
        difference = f"{max(pair[0] or 0.0 for pair in answered):.2g}" if answered else "-"
        share = f"{max(pair[1] or 0.0 for pair in answered):.0%}" if answered else "-"
        told = "; ".join(problems) or "right"
        lines.append(f"| {library} | {setting} | {variant} | {difference} | {share} | {told} |")
    return "\n".join(lines)


def study(bundle: Path, venvs: Path, *, oldest_and_current: bool) -> list[Row]:
    """Every version, then masks, then emulated processors, which are slow; tells rows on stderr as they come."""
    conditions: list[Condition] = []
    for library, versions in VERSIONS.items():
        chosen = (versions[0], versions[-1]) if oldest_and_current else versions
        pythons = [make_environment(venvs, library, version) for version in chosen]
        conditions += [Condition(python, library) for python in pythons if python]
    if not oldest_and_current:
        changed = [c for library in VERSIONS for c in conditions_here(library) if c.setting != "as it is"]
        conditions += sorted(changed, key=lambda condition: bool(condition.before))
        if not shutil.which(EMULATOR):
            print(f"NOT TRIED: emulated processors, since {EMULATOR} is not installed", file=sys.stderr)
    rows: list[Row] = []
    for condition in conditions:
        rows += (found := ask(bundle, condition))
        print(describe_rows(found).partition("|\n|---")[2].partition("\n")[2], file=sys.stderr, flush=True)
    return rows


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0 where every canary was right, 3 where one was not or none was asked."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bundles", nargs="*", type=Path, help="bundles that hold canaries")
    parser.add_argument(
        "--oldest-and-current", action="store_true", help="two versions of each library, as CI"
    )
    parser.add_argument("--venvs", type=Path, help="keep the virtual environments in this folder")
    given = parser.parse_args(arguments)
    status = 0
    with tempfile.TemporaryDirectory(prefix="edgekiln-canaries-") as temporary:
        for bundle in given.bundles or [make_bundle(Path(temporary))]:
            rows = study(bundle, given.venvs or Path(temporary), oldest_and_current=given.oldest_and_current)
            print(f"\n{bundle}\n\n{describe_rows(rows)}")
            if not rows or any(row.problem for row in rows):
                status = 3
    return status


if __name__ == "__main__":
    sys.exit(main())
