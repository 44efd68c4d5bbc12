"""What PyInstaller has to know of the runtime, so that ``pyinstaller app.py`` makes a program that loads bundles.

PyInstaller finds this package by its entry point (``pyinstaller40`` in pyproject.toml). A hook is a file that is named
after the module it tells of; PyInstaller runs it, nothing imports it.
"""

from __future__ import annotations

from pathlib import Path

__all__ = ["list_hook_folders"]


def list_hook_folders() -> list[str]:
    """The folder of this package, where the hooks lie."""
    return [str(Path(__file__).parent)]
