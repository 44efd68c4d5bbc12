"""Imports a package of an optional extra, or says exactly how to install it."""

from __future__ import annotations

import importlib
from types import ModuleType

from edgekiln.runtime.errors import MissingExtraError
from edgekiln.runtime.telemetry import refuse_telemetry

__all__ = ["import_extra"]


def import_extra(module: str, extra: str) -> ModuleType:
    """Import ``module``, which the extra ``extra`` of edgekiln installs.

    Raises:
        MissingExtraError: the package is absent; the message holds the install line. A package that is
            present but broken raises its own ImportError: hiding that would send people the wrong way.
    """
    refuse_telemetry()  # here, since several packages load onnxruntime on their own
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        missing = error.name or module
        if module != missing and not module.startswith(f"{missing}."):
            raise  # the package is here; something that it imports is not
        raise MissingExtraError(
            f"The package {missing!r} is needed here and is not installed.",
            hint=f"Run: pip install 'edgekiln[{extra}]'",
        ) from error
