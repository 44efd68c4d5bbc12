"""The torch-free runtime that a product embeds. What is used loads numpy, Pillow and one engine library; no more.

Names are resolved when they are first used, so that the command line can say what is wrong without loading numpy.

>>> import edgekiln.runtime as ek
>>> with ek.load("runs/traffic-lights/bundle") as classifier:  # doctest: +SKIP
...     print(classifier.predict("photo.jpg").label)
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if (
    TYPE_CHECKING
):  # the table below, once more, for type checkers: they read no dictionaries; a test compares the two
    from edgekiln.runtime.contract import Contract as Contract
    from edgekiln.runtime.contract import Normalization as Normalization
    from edgekiln.runtime.errors import BundleError as BundleError
    from edgekiln.runtime.errors import ContractError as ContractError
    from edgekiln.runtime.errors import DeadlineError as DeadlineError
    from edgekiln.runtime.errors import DeviceError as DeviceError
    from edgekiln.runtime.errors import DeviceLostError as DeviceLostError
    from edgekiln.runtime.errors import EdgekilnError as EdgekilnError
    from edgekiln.runtime.errors import EngineError as EngineError
    from edgekiln.runtime.errors import EnvironmentProblem as EnvironmentProblem
    from edgekiln.runtime.errors import ForkedError as ForkedError
    from edgekiln.runtime.errors import GateError as GateError
    from edgekiln.runtime.errors import ImageError as ImageError
    from edgekiln.runtime.errors import InputError as InputError
    from edgekiln.runtime.errors import MissingExtraError as MissingExtraError
    from edgekiln.runtime.errors import NonFiniteError as NonFiniteError
    from edgekiln.runtime.errors import OverloadedError as OverloadedError
    from edgekiln.runtime.errors import ResourceError as ResourceError
    from edgekiln.runtime.errors import SelfTestError as SelfTestError
    from edgekiln.runtime.errors import SignatureError as SignatureError
    from edgekiln.runtime.errors import UntrustedError as UntrustedError
    from edgekiln.runtime.errors import UsageError as UsageError
    from edgekiln.runtime.pictures.image import prepare as prepare
    from edgekiln.runtime.serving.agreement import FastDecodeEvidence as FastDecodeEvidence
    from edgekiln.runtime.serving.agreement import establish_agreement as establish_agreement
    from edgekiln.runtime.serving.batching.batcher import Batcher as Batcher
    from edgekiln.runtime.serving.batching.counters import BatcherCounters as BatcherCounters
    from edgekiln.runtime.serving.classifier import Classifier as Classifier
    from edgekiln.runtime.serving.loading import load as load
    from edgekiln.runtime.serving.prediction import Candidate as Candidate
    from edgekiln.runtime.serving.prediction import Prediction as Prediction
    from edgekiln.runtime.serving.prediction import Selection as Selection
    from edgekiln.runtime.session import Session as Session
    from edgekiln.runtime.spec import Precision as Precision
    from edgekiln.runtime.version import __version__ as __version__

_PUBLIC = {
    "contract": ("Contract", "Normalization"),
    "errors": (
        "BundleError",
        "ContractError",
        "DeadlineError",
        "DeviceError",
        "DeviceLostError",
        "EdgekilnError",
        "EngineError",
        "EnvironmentProblem",
        "ForkedError",
        "GateError",
        "ImageError",
        "InputError",
        "MissingExtraError",
        "NonFiniteError",
        "OverloadedError",
        "ResourceError",
        "SelfTestError",
        "SignatureError",
        "UntrustedError",
        "UsageError",
    ),
    "pictures.image": ("prepare",),
    "serving.agreement": ("FastDecodeEvidence", "establish_agreement"),
    "serving.batching.batcher": ("Batcher",),
    "serving.batching.counters": ("BatcherCounters",),
    "serving.classifier": ("Classifier",),
    "serving.loading": ("load",),
    "serving.prediction": ("Candidate", "Prediction", "Selection"),
    "session": ("Session",),
    "spec": ("Precision",),
    "version": ("__version__",),
}
"""Every public name, by the module that holds it."""

_MODULE_OF = {name: module for module, names in _PUBLIC.items() for name in names}
__all__ = sorted(_MODULE_OF)  # noqa: PLE0605 -- one table for all: names written out would be a second list


def __getattr__(name: str) -> Any:
    """A public name, imported on first use (PEP 562)."""
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
