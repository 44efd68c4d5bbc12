"""Installs a wheel as each kind of user would, in an environment of its own, uses it, and uninstalls it.

The steps of a role are the commands that docs/install.md shows for it.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import click

from release.distributions import run_checked

__all__ = ["ROLES", "CleanEnvironment", "Inputs", "try_role"]

PROGRAM = """
import sys
import edgekiln.runtime as ek
bundle, picture, environment = sys.argv[1:]
assert ek.__file__.startswith(environment), ek.__file__  # and not a checkout's
with ek.load(bundle) as classifier:
    print(classifier.predict(picture).label)
unwanted = {"torch", "onnx", "pydantic", "click", "rich", "scipy", "matplotlib"} & set(sys.modules)
assert not unwanted, unwanted
"""


@dataclass(frozen=True)
class Inputs:
    """What a user has: labelled pictures, a recipe that trains in seconds, and the bundle that it ended in."""

    pictures: Path
    recipe: Path
    bundle: Path

    @property
    def red(self) -> Path:
        """A picture whose answer is known: ``red``."""
        return self.pictures / "red" / "003.png"


class CleanEnvironment:
    """A virtual environment and an empty home folder. Nothing of the caller's Python is seen in it.

    Args:
        folder: where both are made.
        borrowed: a folder of packages that programs see besides, for a try without a network.
    """

    def __init__(self, folder: Path, *, borrowed: Path | None = None) -> None:
        self.folder, self._home, self._borrowed = folder / "venv", folder / "home", borrowed
        self._home.mkdir(parents=True)
        run_checked([sys.executable, "-m", "venv", "--without-pip", self.folder])

    def pip(self, *arguments: str) -> None:
        """pip of the caller, for this environment; it keeps the caller's configuration and cache."""
        python = str(self.folder / "bin" / "python")
        run_checked(
            [sys.executable, "-m", "pip", "--python", python, "--disable-pip-version-check", *arguments]
        )

    def run(self, program: str, *arguments: str | Path) -> str:
        """What a program of the environment printed, in the home folder."""
        hidden = ("PYTHON", "EDGEKILN", "VIRTUAL_ENV")
        variables = {key: value for key, value in os.environ.items() if not key.startswith(hidden)}
        variables["HOME"] = str(self._home)
        if self._borrowed:
            variables["PYTHONPATH"] = str(self._borrowed)
        return run_checked([self.folder / "bin" / program, *arguments], cwd=self._home, env=variables)

    def leftovers(self) -> list[Path]:
        """Every file and folder with edgekiln's name, in the environment or at home."""
        return sorted(path for root in (self.folder, self._home) for path in root.rglob("*edgekiln*"))


def embed_runtime(environment: CleanEnvironment, inputs: Inputs) -> None:
    """A product: the door's ten lines, and the command line."""
    label = environment.run(
        "python", "-W", "error", "-c", PROGRAM, inputs.bundle, inputs.red, environment.folder
    )
    _expect("red" in label, label)
    said = environment.run("edgekiln", "predict", inputs.bundle, inputs.red)
    _expect(" red " in said, said)


def benchmark_device(environment: CleanEnvironment, inputs: Inputs) -> None:
    """A device: every variant is judged there, without torch. Times are left out: they take minutes."""
    out = environment.folder.parent / "derived"
    said = environment.run(
        "edgekiln", "bench", inputs.bundle, "--data", inputs.pictures, "--out", out, "--no-bench", "--json"
    )
    verdicts = {row["name"]: row["verdict"] for row in json.loads(said)["variants"]}
    _expect(set(verdicts.values()) == {"pass"}, str(verdicts))


def build_engines(environment: CleanEnvironment, inputs: Inputs) -> None:
    """A workstation: from pictures to a bundle of one's own, which answers."""
    folder = environment.folder.parent
    environment.run("edgekiln", "init", inputs.pictures, "--out", folder / "proposed.toml")
    environment.run("edgekiln", "run", inputs.recipe, "--runs", folder / "runs", "-q")
    said = environment.run("edgekiln", "predict", folder / "runs/tiny/bundle", inputs.red)
    _expect(" red " in said, said)


@dataclass(frozen=True)
class Role:
    """The extras that a role installs, and what it then does."""

    extras: str
    steps: Callable[[CleanEnvironment, Inputs], None]


ROLES = {
    "embed": Role("onnx", embed_runtime),
    "benchmark": Role("onnx", benchmark_device),
    "build": Role("build,onnx", build_engines),
}


def try_role(
    role: Role, wheel: Path, environment: CleanEnvironment, inputs: Inputs, pip_flags: Sequence[str] = ()
) -> None:
    """Install, look, use, uninstall. A ClickException says what did not work."""
    environment.pip("install", "-q", "--no-compile", *pip_flags, f"{wheel}[{role.extras}]")
    _expect("Usage: edgekiln" in (said := environment.run("edgekiln", "--help")), said)
    rows = json.loads(environment.run("edgekiln", "doctor", "--json", inputs.bundle))["rows"]
    states = {row["name"]: row["state"] for row in rows}
    wanted = {"edgekiln", "core packages", "bundle", *(f"extra {extra}" for extra in role.extras.split(","))}
    _expect({states.get(name) for name in wanted} == {"OK"}, str(states))
    role.steps(environment, inputs)
    environment.pip("uninstall", "-q", "-y", "edgekiln")
    _expect(not environment.leftovers(), f"left after uninstalling: {environment.leftovers()}")


def _expect(is_so: bool, said: str) -> None:
    if not is_so:
        raise click.ClickException(f"Not what was expected: {said}")
