"""``PYTHONPATH=tests python -m release notes``, ``... wheel DIST [--role embed] [--pip-flags '...']``."""

from __future__ import annotations

import shlex
import shutil
import sys
import tempfile
from pathlib import Path

import click
from tests_support import ROOT, TINY_RECIPE, write_pictures

from edgekiln.runtime.errors import UsageError
from edgekiln.runtime.version import __version__
from release.distributions import build_distributions, check_metadata, run_checked
from release.notes import cut_notes
from release.roles import ROLES, CleanEnvironment, Inputs, try_role

__all__ = ["release"]


@click.group()
def release() -> None:
    """What a release needs."""


@release.command("notes")
@click.argument("version", default=__version__)
def print_notes(version: str) -> None:
    """Print the notes of VERSION (this checkout's) from CHANGELOG.md."""
    click.echo(_notes(version), nl=False)


@release.command("wheel")
@click.argument("dist", type=click.Path(file_okay=False, path_type=Path))
@click.option(
    "--role", "roles", type=click.Choice(tuple(ROLES)), multiple=True, help="Try this role alone; repeatable."
)
@click.option("--pip-flags", default="", help="For pip, where it installs the wheel's dependencies.")
def make_wheel(dist: Path, roles: tuple[str, ...], pip_flags: str) -> None:
    """Build wheel and sdist, try them, and put them into DIST with the release's notes."""
    notes = _notes(__version__)
    with tempfile.TemporaryDirectory(prefix="edgekiln-release-") as place:
        folder = Path(place)
        made = build_distributions(ROOT, folder / "dist")
        check_metadata(made)
        click.echo(f"built     {made.wheel.name}, {made.sdist.name}; twine has no complaint")
        inputs = _make_inputs(folder / "inputs")
        for name in roles or ROLES:
            environment = CleanEnvironment(folder / name)
            try_role(ROLES[name], made.wheel, environment, inputs, shlex.split(pip_flags))
            click.echo(f"{name:<10}installed with [{ROLES[name].extras}], used, uninstalled: nothing is left")
            shutil.rmtree(folder / name)
        dist.mkdir(exist_ok=True)
        for file in (made.wheel, made.sdist):
            shutil.copy(file, dist)
    (dist / f"edgekiln-{__version__}-notes.md").write_text(notes, "utf-8")
    click.echo(f"in {dist}: the wheel, the sdist and the notes of {__version__}")


def _notes(version: str) -> str:
    try:
        return cut_notes((ROOT / "CHANGELOG.md").read_text("utf-8"), version)
    except UsageError as error:
        raise click.ClickException(f"{error.message} {error.hint}") from error


def _make_inputs(folder: Path) -> Inputs:
    """Pictures of coloured noise, and a bundle that this checkout made of them."""
    pictures, recipe = write_pictures(folder / "pictures"), folder / "tiny.toml"
    recipe.write_text(TINY_RECIPE)
    run_checked([sys.executable, "-m", "edgekiln.pipeline", "run", recipe, "--runs", folder / "runs", "-q"])
    return Inputs(pictures, recipe, folder / "runs" / "tiny" / "bundle")


if __name__ == "__main__":
    release()
