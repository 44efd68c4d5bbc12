"""The contract: how a picture becomes a model's input, and what the outputs mean.

It is made once, at training, and travels with the checkpoint, the ONNX metadata and the bundle. It holds facts
only: ``image.prepare`` applies it, and this module imports neither Pillow nor an engine.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from edgekiln.runtime.errors import ContractError, UsageError

__all__ = ["SHARED_NORMALIZATION", "Contract", "Interpolation", "Normalization", "ResizeRule"]

ResizeRule = Literal["squash", "shorter-side"]
Interpolation = Literal["nearest", "bilinear", "bicubic", "lanczos"]
Triple = tuple[float, float, float]

SCHEMA_VERSION = 1


@dataclass(frozen=True, slots=True)
class Normalization:
    """Per-channel (R, G, B) mean and standard deviation in pixel units (0 to 255): y = (x - mean) / std.

    Whole numbers become floats: equal normalizations have equal JSON.
    """

    mean: Triple
    std: Triple

    def __post_init__(self) -> None:
        three = len(self.mean) == 3 and len(self.std) == 3
        if not three or not all(map(math.isfinite, (*self.mean, *self.std))) or min(self.std) <= 0:
            raise UsageError(
                f"A normalization needs three finite means and three finite positive stds, "
                f"got {self.mean} and {self.std}."
            )
        object.__setattr__(self, "mean", tuple(float(v) for v in self.mean))
        object.__setattr__(self, "std", tuple(float(v) for v in self.std))


SHARED_NORMALIZATION = Normalization((127.0,) * 3, (128.0,) * 3)
"""(x - 127) / 128: a pixel is then an exact 8-bit quantization of the input, scale 1/128, zero point 127."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Contract:
    """How a picture becomes uint8 (height, width, 3), RGB, and what the logits stand for.

    Attributes:
        height, width: of the prepared array, in pixels.
        resize: ``squash`` resizes to exactly (height, width); ``shorter-side`` resizes the shorter side to
            ``shorter_side`` pixels, keeping the aspect ratio, and crops the centre.
        shorter_side: pixels; at least ``max(height, width)``. ``None`` for ``squash``.
        interpolation: Pillow's filter of that name; Pillow antialiases when it shrinks.
        normalization: applied inside the graph, never by ``prepare``.
        classes: label of each logit, in order.
        background: RGB that pictures with transparency are laid upon.
        sensor_bits: 8 to 16, how many bits of a 16-bit sample a camera fills: a value becomes
            ``value * 255 / (2 ** sensor_bits - 1)``, rounded, and TIFF, PGM and PPM are taken too. ``None`` takes the
            usual formats alone, and their 16-bit samples in full. It is no part of the JSON where it is ``None``, so
            that contracts of earlier versions keep their digests. What else holds for pictures is the same for all
            contracts, see docs/images.md.
    """

    height: int
    width: int
    resize: ResizeRule = "squash"
    shorter_side: int | None = None
    interpolation: Interpolation = "bilinear"
    normalization: Normalization = SHARED_NORMALIZATION
    classes: tuple[str, ...]
    background: tuple[int, int, int] = (255, 255, 255)
    sensor_bits: int | None = None

    def __post_init__(self) -> None:
        _check_geometry(self)
        if self.interpolation not in get_args(Interpolation):
            raise UsageError(
                f"Unknown interpolation {self.interpolation!r}; known: {', '.join(get_args(Interpolation))}."
            )
        if not isinstance(self.classes, tuple) or not all(isinstance(label, str) for label in self.classes):
            raise UsageError(f"Class names must be a tuple of strings, got {self.classes!r}.")
        _check_labels(self.classes)
        if len(self.classes) < 2 or len(set(self.classes)) != len(self.classes):
            raise UsageError(f"A contract needs two or more distinct class names, got {list(self.classes)}.")
        if len(self.background) != 3 or not all(0 <= v <= 255 for v in self.background):
            raise UsageError(f"The background must be three values from 0 to 255, got {self.background}.")
        if self.sensor_bits is not None and not (
            type(self.sensor_bits) is int and 8 <= self.sensor_bits <= 16
        ):
            raise UsageError(f"sensor_bits must be a whole number from 8 to 16, got {self.sensor_bits!r}.")

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, with the schema version; without ``sensor_bits`` where that is ``None``."""
        values: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        if self.sensor_bits is None:
            del values["sensor_bits"]
        return {"schema_version": SCHEMA_VERSION, **values}

    def to_json(self) -> str:
        """Canonical JSON: the same contract always gives the same bytes."""
        return json.dumps(self.to_dict(), sort_keys=True, separators=(",", ":"))

    @property
    def digest(self) -> str:
        """sha256 of the canonical JSON, as hex."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Contract:
        """Read what ``to_dict`` wrote.

        Raises:
            ContractError: not a contract, or one of a newer schema.
        """
        if not isinstance(values, Mapping):
            raise ContractError(f"A contract is a JSON object, got {type(values).__name__}.")
        fields = dict(values)
        version = fields.pop("schema_version", None)
        if type(version) is not int or version != SCHEMA_VERSION:
            raise ContractError(
                f"The contract has schema version {version!r}; this edgekiln reads {SCHEMA_VERSION}.",
                hint="Use the edgekiln version that wrote it.",
            )
        try:
            return cls(**_typed(fields))
        except (TypeError, ValueError, KeyError, OverflowError, UsageError) as error:
            raise ContractError(f"The stored contract is not valid: {error}") from error

    @classmethod
    def from_json(cls, text: str) -> Contract:
        """Read what ``to_json`` wrote; raises ContractError."""
        try:
            values = json.loads(text)
        except (ValueError, TypeError, RecursionError) as error:
            raise ContractError(f"The stored contract is not JSON: {error}") from error
        if not isinstance(values, dict):
            raise ContractError("The stored contract is not a JSON object.")
        return cls.from_dict(values)


def _check_geometry(contract: Contract) -> None:
    height, width, shorter_side = contract.height, contract.width, contract.shorter_side
    if not all(type(value) is int for value in (height, width)):
        raise UsageError(f"Height and width must be whole numbers of pixels, got {height!r} x {width!r}.")
    if not (1 <= height <= 8192 and 1 <= width <= 8192):
        raise UsageError(f"Height and width must be 1 to 8192 pixels, got {height} x {width}.")
    if contract.resize not in get_args(ResizeRule):
        raise UsageError(
            f"Unknown resize rule {contract.resize!r}; known: {', '.join(get_args(ResizeRule))}."
        )
    if contract.resize == "squash" and shorter_side is not None:
        raise UsageError("shorter_side has no meaning with resize = 'squash'.")
    # A crop larger than the picture would have to invent a border.
    if contract.resize == "shorter-side" and (shorter_side is None or shorter_side < max(height, width)):
        raise UsageError(
            f"resize = 'shorter-side' needs shorter_side >= {max(height, width)}, got {shorter_side}."
        )


def _check_labels(labels: tuple[str, ...]) -> None:
    """A label goes into files, logs and terminals; half of a surrogate pair goes into none of them."""
    for label in labels:
        try:
            label.encode()
        except UnicodeEncodeError as error:
            raise UsageError(
                f"The class name {label!r} cannot be written as UTF-8.",
                hint="Rename its folder, or its label.",
            ) from error


_JSON_KINDS = {
    "height": int,
    "width": int,
    "resize": str,
    "interpolation": str,
    "classes": list,
    "background": list,
    "normalization": dict,
}


def _typed(fields: dict[str, Any]) -> dict[str, Any]:
    """JSON lists as tuples, JSON objects as their dataclass; anything of another type is refused."""
    for name, kind in _JSON_KINDS.items():
        if type(fields[name]) is not kind:
            raise TypeError(f"{name} is {fields[name]!r}, not {kind.__name__}")
    if not all(type(label) is str for label in fields["classes"]):
        raise TypeError("classes are not all strings")
    if not all(type(value) is int for value in fields["background"]):
        raise TypeError("background is not all whole numbers")
    if fields["shorter_side"] is not None and type(fields["shorter_side"]) is not int:
        raise TypeError(f"shorter_side is {fields['shorter_side']!r}")
    if "sensor_bits" in fields and type(fields["sensor_bits"]) is not int:
        raise TypeError(f"sensor_bits is {fields['sensor_bits']!r}, not int")
    return {
        **fields,
        "classes": tuple(fields["classes"]),
        "background": tuple(fields["background"]),
        # The ignore: these are tuples of any length until Normalization has checked that it is three.
        "normalization": Normalization(**{k: _numbers(v) for k, v in fields["normalization"].items()}),  # type: ignore[arg-type]
    }


def _numbers(values: Any) -> tuple[float, ...]:
    if type(values) is not list or not all(type(value) in (int, float) for value in values):
        raise TypeError(f"{values!r} is not a list of numbers")
    return tuple(float(value) for value in values)
