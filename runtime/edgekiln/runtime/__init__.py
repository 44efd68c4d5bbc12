"""The torch-free runtime that a product embeds. Importing it loads numpy and nothing else.

>>> import edgekiln.runtime as ek
>>> with ek.load("runs/traffic-lights/bundle") as classifier:  # doctest: +SKIP
...     print(classifier.predict("photo.jpg").label)
"""

from edgekiln.runtime.bundle import load
from edgekiln.runtime.classifier import Candidate, Classifier, Prediction, Selection
from edgekiln.runtime.contract import Contract, Normalization
from edgekiln.runtime.errors import EdgekilnError, ImageError, InputError
from edgekiln.runtime.image import prepare
from edgekiln.runtime.session import Session
from edgekiln.runtime.spec import Precision

__all__ = [
    "Candidate",
    "Classifier",
    "Contract",
    "EdgekilnError",
    "ImageError",
    "InputError",
    "Normalization",
    "Precision",
    "Prediction",
    "Selection",
    "Session",
    "load",
    "prepare",
]
