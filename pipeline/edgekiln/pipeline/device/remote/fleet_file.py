"""``fleet.json``: which devices a bundle was measured on, beside their derived bundles. Opens no bundle."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from edgekiln.runtime.bundles.beside import place_beside, remove
from edgekiln.runtime.errors import BundleError, UsageError

__all__ = ["FLEET_FILE", "DeviceState", "Fleet", "read_fleet", "write_fleet"]

FLEET_FILE = "fleet.json"
_SCHEMA = "1.0"


@dataclass(frozen=True, slots=True)
class DeviceState:
    """How far a device is.

    Attributes:
        name: of the device, and of the folder with its derived bundle where it is done.
        required: a fleet without a passing variant on it is refused.
        emulated: its processor is; then nothing was timed there.
        state: ``done``, or ``failed``.
        why: for a person, where it failed.
        code: of the error; ``interrupted`` of a device that has not ended yet.
    """

    name: str
    required: bool
    emulated: bool
    state: Literal["done", "failed"]
    why: str | None = None
    code: str | None = None


@dataclass(frozen=True, slots=True)
class Fleet:
    """What the folder of ``bench --on`` says of itself; ``timed`` unless nothing was to be timed."""

    bundle_name: str
    bundle_digest: str
    timed: bool
    devices: tuple[DeviceState, ...]


def read_fleet(folder: Path) -> Fleet:
    """Read ``folder``'s file.

    Raises:
        UsageError: there is none.
        BundleError: it cannot be read.
    """
    path = folder / FLEET_FILE
    try:
        values = json.loads(path.read_text("utf-8"))
        devices = tuple(_read_state(entry) for entry in values["devices"])
        fleet = Fleet(values["bundle"]["name"], values["bundle"]["digest"], values["timed"], devices)
        if len({one.name for one in devices}) < len(devices) or type(fleet.timed) is not bool:
            raise ValueError("a device stands there twice, or `timed` is no truth value")
        if not isinstance(fleet.bundle_name, str) or not isinstance(fleet.bundle_digest, str):
            raise TypeError("the bundle has no name and digest")
    except FileNotFoundError as error:
        raise UsageError(
            f"{folder} has no {FLEET_FILE}.", hint="`edgekiln bench BUNDLE --on DEVICE,... --out FOLDER` makes it.",
            path=folder,
        ) from error  # fmt: skip
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise BundleError(
            f"{path} cannot be read: {error!r}.", hint="Take another folder, or remove this one.", path=path
        ) from error
    return fleet


def _read_state(entry: Mapping[str, Any]) -> DeviceState:
    state = DeviceState(**{key: entry[key] for key in DeviceState.__slots__})
    texts = (state.name, state.why or "", state.code or "")
    if not all(isinstance(text, str) for text in texts) or state.state not in ("done", "failed"):
        raise TypeError(f"no device: {entry!r}")
    if type(state.required) is not bool or type(state.emulated) is not bool:
        raise TypeError(f"no device: {entry!r}")
    if not state.name or state.name.startswith(".") or "/" in state.name or "\0" in state.name:
        raise ValueError(f"no name of a device: {state.name!r}")
    return state


def write_fleet(folder: Path, fleet: Fleet) -> None:
    """Write ``folder``'s file, in one step."""
    values = {
        "schema_version": _SCHEMA,
        "bundle": {"name": fleet.bundle_name, "digest": fleet.bundle_digest},
        "timed": fleet.timed,
        "devices": [asdict(one) for one in fleet.devices],
    }
    path = folder / FLEET_FILE
    place = place_beside(path)
    try:
        place.write_text(json.dumps(values, indent=1, ensure_ascii=False) + "\n", "utf-8")
        place.replace(path)
    finally:
        remove(place)
