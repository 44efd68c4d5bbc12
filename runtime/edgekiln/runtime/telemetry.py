"""Keeps engine libraries from reporting home. edgekiln sends nothing, and neither may what it loads.

Official builds of onnxruntime from 1.29 on (Linux, macOS) upload process, device and model facts and keep a device
identifier under ``~/.cache`` unless they are told otherwise before they initialize (its docs/Privacy.md,
"Disabling Telemetry"). huggingface_hub, which timm loads, does the like when it downloads.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

__all__ = ["OPT_OUTS", "hide_package", "import_when_asked", "refuse_telemetry"]

OPT_OUTS = {"ORT_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
"""Environment variables that the libraries read once, when they are loaded."""


def refuse_telemetry() -> None:
    """Set the opt-outs of this process and its children. A value that somebody set on purpose stays."""
    for name, value in OPT_OUTS.items():
        os.environ.setdefault(name, value)


@contextlib.contextmanager
def hide_package(package: str) -> Iterator[None]:
    """Let imports of a package fail as if it were not installed; ``None`` in ``sys.modules`` means that."""
    modules: dict[str, ModuleType | None] = sys.modules  # type: ignore[assignment] # None is the import system's own
    before = {package: modules[package]} if package in modules else {}
    modules[package] = None
    try:
        yield
    finally:
        del modules[package]
        modules.update(before)


def import_when_asked(library: ModuleType, name: str, module: str, *, hidden: str) -> None:
    """Let ``library.name``, where it is missing, be imported from ``module`` with ``hidden`` hidden, once asked for.

    A library that has a ``__getattr__`` of its own (PEP 562) is left as it is.
    """
    if name in vars(library) or "__getattr__" in vars(library):
        return

    def find(asked: str) -> Any:
        if asked != name:
            raise AttributeError(f"module {library.__name__!r} has no attribute {asked!r}")
        with hide_package(hidden):
            found = getattr(importlib.import_module(module), name)
        setattr(library, name, found)
        return found

    library.__getattr__ = find  # type: ignore[method-assign] # of the module itself
