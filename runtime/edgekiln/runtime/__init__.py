"""The torch-free runtime that a product embeds. What is used loads numpy, Pillow and one engine library; no more.

Names are resolved when they are first used, so that the command line can say what is wrong without loading numpy.

>>> import edgekiln.runtime as ek
>>> with ek.load("runs/traffic-lights/bundle") as classifier:  # doctest: +SKIP
...     print(classifier.predict("photo.jpg").label)
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgekiln.runtime.batching import Batcher, BatcherCounters
    from edgekiln.runtime.bundle import load
    from edgekiln.runtime.classifier import Candidate, Classifier, Prediction, Selection
    from edgekiln.runtime.contract import Contract, Normalization
    from edgekiln.runtime.errors import (
        DeadlineError,
        EdgekilnError,
        ForkedError,
        ImageError,
        InputError,
        OverloadedError,
    )
    from edgekiln.runtime.image import prepare
    from edgekiln.runtime.session import Session
    from edgekiln.runtime.spec import Precision

__all__ = [
    "Batcher",
    "BatcherCounters",
    "Candidate",
    "Classifier",
    "Contract",
    "DeadlineError",
    "EdgekilnError",
    "ForkedError",
    "ImageError",
    "InputError",
    "Normalization",
    "OverloadedError",
    "Precision",
    "Prediction",
    "Selection",
    "Session",
    "load",
    "prepare",
]

_MODULES = {
    "Batcher": "batching",
    "BatcherCounters": "batching",
    "Candidate": "classifier",
    "Classifier": "classifier",
    "Contract": "contract",
    "DeadlineError": "errors",
    "EdgekilnError": "errors",
    "ForkedError": "errors",
    "ImageError": "errors",
    "InputError": "errors",
    "Normalization": "contract",
    "OverloadedError": "errors",
    "Precision": "spec",
    "Prediction": "classifier",
    "Selection": "classifier",
    "Session": "session",
    "load": "bundle",
    "prepare": "image",
}


def __getattr__(name: str) -> Any:
    """A public name, imported on first use (PEP 562)."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
