"""Lets timm be imported where torchvision or Pillow is absent: for its networks it needs only names of them.

Knows no network.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from edgekiln.pipeline.gpu_suite.machine import is_installed

__all__ = ["stand_ins_for_timm"]


_STOOD_IN_FOR = ("torchvision", "PIL")


@contextlib.contextmanager
def stand_ins_for_timm() -> Iterator[None]:
    """Inside, what timm asks for by name and never uses is there."""
    absent = tuple(name for name in _STOOD_IN_FOR if not is_installed(name))
    finder = _StandIns(absent)
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        for name in [name for name in sys.modules if name.partition(".")[0] in absent]:
            del sys.modules[name]  # others must go on seeing that it is not here


class _Text(str):
    """The name of a name, of which any other may be asked: ``Image.Resampling.BILINEAR``."""

    __slots__ = ()

    def __getattr__(self, name: str) -> _Text:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Text(name)


class _AnyName(type):
    def __getattr__(cls, name: str) -> _Text:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Text(name)


class _StandIn(ModuleType):
    """A module in which every name is a class of its own, and every name of those a text."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _AnyName(name, (), {})


class _StandIns(MetaPathFinder, Loader):
    def __init__(self, absent: tuple[str, ...]) -> None:
        self._absent = absent

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if fullname.partition(".")[0] not in self._absent:
            return None
        return ModuleSpec(fullname, self, is_package=True)

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        module = _StandIn(spec.name)
        if spec.name == "PIL":  # which timm asks for its version, to choose names by
            module.__dict__["__version__"] = "10.1"
        return module

    def exec_module(self, module: ModuleType) -> None:
        """Nothing is in it."""
