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
        BundleError,
        ContractError,
        DeadlineError,
        DeviceError,
        EdgekilnError,
        EngineError,
        EnvironmentProblem,
        ForkedError,
        GateError,
        ImageError,
        InputError,
        MissingExtraError,
        NonFiniteError,
        OverloadedError,
        ResourceError,
        SignatureError,
        UntrustedError,
        UsageError,
    )
    from edgekiln.runtime.image import prepare
    from edgekiln.runtime.session import Session
    from edgekiln.runtime.spec import Precision
    from edgekiln.runtime.version import __version__

__all__ = [
    "Batcher",
    "BatcherCounters",
    "BundleError",
    "Candidate",
    "Classifier",
    "Contract",
    "ContractError",
    "DeadlineError",
    "DeviceError",
    "EdgekilnError",
    "EngineError",
    "EnvironmentProblem",
    "ForkedError",
    "GateError",
    "ImageError",
    "InputError",
    "MissingExtraError",
    "NonFiniteError",
    "Normalization",
    "OverloadedError",
    "Precision",
    "Prediction",
    "ResourceError",
    "Selection",
    "Session",
    "SignatureError",
    "UntrustedError",
    "UsageError",
    "__version__",
    "load",
    "prepare",
]

_MODULES = {
    "Batcher": "batching",
    "BatcherCounters": "batching",
    "BundleError": "errors",
    "Candidate": "classifier",
    "Classifier": "classifier",
    "Contract": "contract",
    "ContractError": "errors",
    "DeadlineError": "errors",
    "DeviceError": "errors",
    "EdgekilnError": "errors",
    "EngineError": "errors",
    "EnvironmentProblem": "errors",
    "ForkedError": "errors",
    "GateError": "errors",
    "ImageError": "errors",
    "InputError": "errors",
    "MissingExtraError": "errors",
    "NonFiniteError": "errors",
    "Normalization": "contract",
    "OverloadedError": "errors",
    "Precision": "spec",
    "Prediction": "classifier",
    "ResourceError": "errors",
    "Selection": "classifier",
    "Session": "session",
    "SignatureError": "errors",
    "UntrustedError": "errors",
    "UsageError": "errors",
    "__version__": "version",
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
