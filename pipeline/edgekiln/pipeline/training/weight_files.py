"""Files of weights, edgekiln's own and others': what is in one, which of its copies is taken, and why one is refused.

A file is told by its bytes, not by its ending, and nothing in it is ever unpickled but tensors and plain values. What a
network makes of the names is not known here.
"""

from __future__ import annotations

import argparse
import json
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from edgekiln.runtime.contract import Contract
from edgekiln.runtime.errors import RecipeError

__all__ = ["StoredWeights", "read_weights"]

_AVERAGED = ("state_dict_ema", "model_ema", "ema_state_dict", "ema")
"""Where timm's, torchvision's and other trainings keep the moving average of the weights. It is taken first, as timm
does: it is what those trainings judge."""
_LAST = ("state_dict", "model_state_dict", "model")
"""Where they keep the weights of the last step."""
_MOST_NAMED = 5
_SAVE_WEIGHTS = (
    "Wanted a file of tensors alone, as torch.save(model.state_dict(), path) or safetensors write it."
)
_COPY_AGAIN = "Copy or download it again."
_STARTS = (
    (b"version https://git-lfs", "is a pointer of Git LFS, and not the file that it stands for", "Run: git lfs pull"),
    (b"<", "is a web page or XML", "Download the file itself, not the page that shows it."),
    (b"\x89HDF", "is HDF5, as Keras writes it", _SAVE_WEIGHTS),
    (b"\x1f\x8b", "is compressed by gzip", "Unpack it first: gunzip."),
    (b"GGUF", "is GGUF, a format for language models", _SAVE_WEIGHTS),
)  # fmt: skip
"""What is found in the place of weights: first bytes, what they tell, and the way out."""


@dataclass(frozen=True, slots=True)
class StoredWeights:
    """A file's tensors by name.

    Attributes:
        backbone, contract: of an edgekiln checkpoint, else ``None``.
        told: what was chosen, renamed or left aside on the way from the file to these tensors, in sentences.
    """

    path: Path
    tensors: Mapping[str, Tensor]
    backbone: str | None = None
    contract: Contract | None = None
    told: tuple[str, ...] = ()


def read_weights(path: Path) -> StoredWeights:
    """Read a file of weights: safetensors, or what ``torch.save`` wrote, with ``weights_only=True``.

    Raises:
        RecipeError: no such file, damaged, another kind of file, or one that holds more than tensors and plain values.
    """
    if not path.is_file():
        raise RecipeError(
            f"There is no weight file {path}.",
            hint="A relative path is taken from the recipe's own folder.",
            path=path,
        )
    with path.open("rb") as file:
        start = file.read(64)
    if start[8:9] == b"{":
        return _read_safetensors(path)
    if start.startswith(b"PK"):
        _check_archive(path)
    elif not start.startswith(b"\x80"):  # a pickle's first byte, as torch.save wrote before it wrote archives
        raise _explain_start(path, start)
    return _choose_state(_load_plain(path), path)


def _refuse(path: Path, what: str, hint: str) -> RecipeError:
    return RecipeError(f"{path} cannot be read as weights: it {what}.", hint=hint, path=path)


def _explain_start(path: Path, start: bytes) -> RecipeError:
    if not start:
        return _refuse(path, "is empty", _COPY_AGAIN)
    for begins, what, hint in _STARTS:
        if start.startswith(begins):
            return _refuse(path, what, hint)
    return _refuse(
        path, f"is neither safetensors nor written by torch.save, it starts with {start[:8]!r}", _SAVE_WEIGHTS
    )


# --------------------------------------------------------------------------------------------------------------
# safetensors


def _read_safetensors(path: Path) -> StoredWeights:
    from safetensors import safe_open

    try:
        with safe_open(path, framework="pt") as file:
            about = json.loads((file.metadata() or {}).get("edgekiln", "{}"))
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 -- not a mapping
    except Exception as error:  # the library has its own error type, and others
        reason = str(error).splitlines()[0].rstrip(".") if str(error) else type(error).__name__
        raise _refuse(path, f"is cut off or damaged ({reason})", _COPY_AGAIN) from error
    contract = Contract.from_json(about["contract"]) if "contract" in about else None
    return StoredWeights(path, tensors, about.get("backbone"), contract)


# --------------------------------------------------------------------------------------------------------------
# torch.save


def _check_archive(path: Path) -> None:
    """Refuse archives that ``torch.save`` did not write."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError) as error:
        raise _refuse(path, f"is cut off or damaged ({str(error).rstrip('.')})", _COPY_AGAIN) from error
    parts = {name.partition("/")[2] for name in names}
    if "constants.pkl" in parts:
        raise _refuse(
            path,
            "is a TorchScript archive, code and weights in one",
            f"Write its weights alone: torch.save(torch.jit.load({path.name!r}).state_dict(), 'weights.pth').",
        )
    if "data.pkl" not in parts:
        listed = ", ".join(names[:3]) or "nothing"
        raise _refuse(
            path, f"is a ZIP archive that torch.save did not write; it holds {listed}", _SAVE_WEIGHTS
        )


def _load_plain(path: Path) -> Any:
    try:
        # In which timm's and torchvision's train.py and Lightning keep their arguments: values, no code.
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch has errors of many kinds for files
        if found := _find_objects(path, error):
            raise _refuse_objects(path, found) from error
        # torch's text goes on for lines, and advises to run the file's code.
        reason = re.split(r"[\n.:] ?", str(error), maxsplit=1)[0] or type(error).__name__
        raise _refuse(path, f"is cut off or damaged ({reason})", _COPY_AGAIN) from error


def _find_objects(path: Path, error: Exception) -> list[str]:
    """Classes and functions that reading the file would call, as ``module.name``."""
    first = re.findall(r"GLOBAL ([\w.]+)", str(error))
    if not first:
        return []
    try:
        return sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    except (
        Exception
    ):  # the layout before 2020: torch tells the first one, and the parts of a network stand beside it
        parts = re.findall(rb"\bc(torch\.nn\.modules\.[\w.]+)\n(\w+)\n", path.read_bytes())
        return sorted({*first[:1], *(f"{module.decode()}.{name.decode()}" for module, name in parts)})


def _refuse_objects(path: Path, found: list[str]) -> RecipeError:
    key = _guess_key(path)
    network = [name for name in found if name.startswith("torch.nn.modules.")]
    others = [name for name in found if name not in network]
    named = ", ".join((others or network)[:_MOST_NAMED])
    more = f" and {len(others) - _MOST_NAMED} more" if len(others) > _MOST_NAMED else ""
    what = f"a whole pickled network ({named}{more})" if network else f"{named}{more} besides tensors"
    part = f"[{key!r}]" if key else ""
    return _refuse(
        path,
        f"holds {what}, and Python would run their code to read it",
        "Where you trust the file, write its weights alone: torch.save(torch.load("
        f"{path.name!r}, weights_only=False){part}{'.state_dict()' if network else ''}, 'weights.pth').",
    )


def _guess_key(path: Path) -> str | None:
    """The key of the weights in a file that is not unpickled: the first known one that stands in it as a string."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            name = next(name for name in archive.namelist() if name.endswith("/data.pkl"))
            text = archive.read(name)
    else:
        text = path.read_bytes()
    strings = {key: b"X" + len(key).to_bytes(4, "little") + key.encode() for key in (*_AVERAGED, *_LAST)}
    return next((key for key, string in strings.items() if string in text), None)


# --------------------------------------------------------------------------------------------------------------
# Which of several


def _choose_state(stored: Any, path: Path) -> StoredWeights:
    """The state dict itself, or the one to take of those that a training keeps in one file."""
    if _is_state(stored):
        return StoredWeights(path, stored)
    found = {key: value for key, value in _items(stored) if _is_state(value)}
    known = [key for key in (*_AVERAGED, *_LAST) if key in found] or list(found)
    if not found:
        raise RecipeError(
            f"{path} holds no plain state dict: {_describe(stored)}.", hint=_SAVE_WEIGHTS, path=path
        )
    if known[0] not in (*_AVERAGED, *_LAST) and len(known) > 1:
        raise RecipeError(
            f"{path} holds {len(found)} state dicts, and nothing tells which is the network: {', '.join(known)}.",
            hint=f"Write one alone: torch.save(torch.load({path.name!r})[{known[0]!r}], 'weights.pth').",
            path=path,
        )
    key, others = known[0], [other for other in found if other != known[0]]
    average = ", the moving average" if key in _AVERAGED else ""
    beside = f"; {', '.join(others[:_MOST_NAMED])} beside it is not used" if others else ""
    return StoredWeights(
        path, found[key], told=(f"{path.name}: the weights are those under {key!r}{average}{beside}.",)
    )


def _items(stored: Any) -> list[tuple[str, Any]]:
    return (
        [(key, value) for key, value in stored.items() if isinstance(key, str)]
        if isinstance(stored, Mapping)
        else []
    )


def _is_state(value: Any) -> bool:
    return (
        isinstance(value, Mapping)
        and len(value) > 0
        and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in value.items())
    )


def _describe(stored: Any) -> str:
    """What stands in a file instead."""
    if not isinstance(stored, Mapping):
        return f"it is one {type(stored).__name__}"
    for key in (*_AVERAGED, *_LAST):
        value = stored.get(key)
        if isinstance(value, Mapping):
            wrong = next(((k, type(v).__name__) for k, v in value.items() if not isinstance(v, Tensor)), None)
            if wrong:
                return f"its {key!r} has {wrong[0]!r}, of type {wrong[1]}, among the tensors"
    listed = ", ".join(f"{key} ({type(value).__name__})" for key, value in list(stored.items())[:_MOST_NAMED])
    return f"its keys are {listed}" if listed else "it is an empty dict"
