"""``PYTHONPATH=tests python -m reference.screenshots PAGE --into FOLDER``: the first screen of a page as pictures.

One as a phone shows it and one as a desk does, for the documentation. Needs Chromium and the extra ``dev``.
"""

from __future__ import annotations

import io
import shutil
from pathlib import Path

import click
from PIL import Image
from playwright.sync_api import sync_playwright

__all__ = ["SIZES", "take_screenshots"]

SIZES = {"390": (390, 844, 2), "1280": (1280, 900, 1)}
"""By name: width and height of the window, pixels of the picture for one of the window."""

_COLORS = 128  # a page has few: a third of the bytes, and no difference to the eye


def take_screenshots(page: Path, folder: Path, name: str) -> list[Path]:
    """Write ``NAME-390.png`` and ``NAME-1280.png``, in light colours, and give their paths.

    Raises:
        click.ClickException: there is no Chromium.
    """
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        raise click.ClickException("There is no Chromium: install Debian's chromium, or google-chrome.")
    written = []
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=browser, args=["--no-sandbox"])
        for size, (width, height, scale) in SIZES.items():
            tab = opened.new_page(
                viewport={"width": width, "height": height}, device_scale_factor=scale, color_scheme="light"
            )
            tab.goto(page.resolve().as_uri())
            picture = Image.open(io.BytesIO(tab.screenshot())).convert("RGB")
            picture = picture.quantize(_COLORS, dither=Image.Dither.NONE)
            path = folder / f"{name}-{size}.png"
            picture.save(path, optimize=True)
            written.append(path)
        opened.close()
    return written


@click.command()
@click.argument("page", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option(
    "--into", "folder", default=".", type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="Where the pictures go.",
)  # fmt: skip
@click.option("--name", default="report", help="What their names begin with.")
def main(page: Path, folder: Path, name: str) -> None:
    """Take pictures of a page's first screen."""
    for path in take_screenshots(page, folder, name):
        click.echo(f"{path}: {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
