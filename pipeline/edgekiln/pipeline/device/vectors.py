"""Writes test vectors: made pictures, what the engine gets of each, and its answers, for products in other languages.

Who embeds an engine without ``edgekiln.runtime`` tries two things on them: whether the engine is called rightly (its
input is given), and whether pictures are prepared rightly. docs/embedding.md shows both.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from edgekiln.pipeline.device.canary_records import (
    CanaryReference,
    answer_canaries,
    read_reference,
    record_canaries,
)
from edgekiln.pipeline.device.made_pictures import MadePicture, make_pictures
from edgekiln.runtime.backends import CPU_BACKENDS, open_session
from edgekiln.runtime.bundles.beside import place_beside, remove
from edgekiln.runtime.bundles.bundle import Bundle, check_usable
from edgekiln.runtime.bundles.canaries import CanaryRecord, check_canaries
from edgekiln.runtime.bundles.canary_inputs import CANARIES, make_canaries
from edgekiln.runtime.bundles.manifest import VariantRecord
from edgekiln.runtime.contract import Contract
from edgekiln.runtime.errors import EngineError, EnvironmentProblem, ResourceError, SelfTestError, UsageError
from edgekiln.runtime.pictures.image import prepare
from edgekiln.runtime.pictures.levels import white_of
from edgekiln.runtime.session import Session
from edgekiln.runtime.spec import INPUT_NAME, OUTPUT_NAME, Frames, Logits, Precision
from edgekiln.runtime.version import __version__

__all__ = ["INDEX_NAME", "WrittenVectors", "write_vectors"]

INDEX_NAME = "vectors.json"
_FRAMES_NAME = "frames.npy"
_SCHEMA_VERSION = "1.0"


@dataclass(frozen=True, slots=True)
class WrittenVectors:
    """What was written.

    Attributes:
        folder: where.
        rows: how many frames there are.
        answered: rows that each variant's answers are there for; those of the made pictures only where it runs here.
        left_out: why others have no answers, by name.
        index: the content of ``vectors.json``.
    """

    folder: Path
    rows: int
    answered: Mapping[str, int]
    left_out: Mapping[str, str]
    index: Mapping[str, Any] = field(repr=False)


@dataclass(frozen=True, slots=True)
class _Answers:
    """Logits float32 (rows, classes) of a variant, and how far others may lie from them, float32 (rows,)."""

    variant: VariantRecord
    logits: Logits
    tolerances: np.ndarray[Any, np.dtype[np.float32]]
    recorded: bool
    problem: str | None


def write_vectors(
    bundle: Bundle, folder: Path, *, variant: str | None = None, allow_unverified: bool = False
) -> WrittenVectors:
    """Make pictures, prepare them, let the engines answer, and write all of it in one step.

    Args:
        bundle: whose contract and engines.
        folder: to make.
        variant: take this one alone; ``None`` takes all that passed.
        allow_unverified: with ``variant``: also one whose gate did not pass.

    Raises:
        UsageError: the folder is there, no variant of that name, or one that did not pass.
        SelfTestError: an engine answers otherwise here than where it was judged.
        EnvironmentProblem: no variant has answers: none runs here, and none recorded its own.
        ResourceError: the folder cannot be written.
    """
    if folder.exists() or folder.is_symlink():
        raise UsageError(f"{folder} exists.", hint="Name another folder, or remove it first.", path=folder)
    chosen = _choose(bundle, variant, allow_unverified)
    contract = bundle.contract
    pictures = make_pictures(contract.height, contract.width, contract.sensor_bits)
    frames = np.concatenate(
        [make_canaries(contract.height, contract.width), [prepare(made.data, contract) for made in pictures]]
    )
    answers, left_out = _answer_all(bundle, chosen, frames)
    if not answers:
        told = "; ".join(f"{name}: {why}" for name, why in left_out.items())
        raise EnvironmentProblem(
            f"No variant of {bundle.path} has answers to write: {told}.",
            hint="Write the vectors where one of them runs; a bundle made again records answers to its canaries.",
            path=bundle.path,
        )
    write = functools.partial(_write_all, bundle, pictures, frames, answers, left_out)
    index = _write_beside(folder, write)
    answered = {part.variant.name: len(part.logits) for part in answers}
    return WrittenVectors(folder, len(frames), answered, left_out, index)


def _choose(bundle: Bundle, name: str | None, allow_unverified: bool) -> list[VariantRecord]:
    if name is None and allow_unverified:
        raise UsageError("allow_unverified goes with a variant's name.", hint="Name it with --variant.")
    chosen = [v for v in bundle.variants if v.deployable] if name is None else [bundle.variant(name)]
    if not chosen:
        raise UsageError(
            f"{bundle.path} has no variant that passed its gate.",
            hint="Name one with --variant; --allow-unverified takes one that did not pass.",
            path=bundle.path,
        )
    for variant in chosen:
        check_usable(variant, allow_unverified=allow_unverified)
    return chosen


# -- answers


def _answer_all(
    bundle: Bundle, variants: Sequence[VariantRecord], frames: Frames
) -> tuple[list[_Answers], dict[str, str]]:
    """Answers by variant; and why a variant has none."""
    answers, left_out = [], {}
    reference = functools.cache(functools.partial(_find_reference, bundle))
    for variant in variants:
        try:
            answers.append(_answer(bundle, variant, frames, reference))
        except SelfTestError:
            raise
        except (EnvironmentProblem, ResourceError) as problem:
            if variant.canaries is None:
                left_out[variant.name] = (
                    f"it cannot run here ({problem.message}), and its bundle records no answers"
                )
            else:  # what it answered where it was judged holds all the same
                record = variant.canaries
                tolerances = np.array(record.tolerances, np.float32)
                answers.append(_Answers(variant, record.answers, tolerances, True, problem.message))
    return answers, left_out


def _answer(bundle: Bundle, variant: VariantRecord, frames: Frames, reference: Any) -> _Answers:
    session = _open(bundle, variant)
    try:
        record = variant.canaries or _record(bundle, variant, session, reference())
        if variant.canaries is not None and not (result := check_canaries(session, record)).ok:
            raise SelfTestError(
                f"Variant {variant.name!r} answers otherwise here than where it was judged: {result.problem}.",
                hint="Write the vectors on another machine, or with another version of its library.",
            )
        made = [session.run(frames[i : i + 1]) for i in range(len(record.answers), len(frames))]
    finally:
        session.close()
    # The largest of the canaries' tolerances: the same engine, and pictures of the same kind.
    tolerances = [*record.tolerances, *[max(record.tolerances)] * len(made)]
    logits = np.concatenate([record.answers, *made])
    return _Answers(variant, logits, np.array(tolerances, np.float32), variant.canaries is not None, None)


def _open(bundle: Bundle, variant: VariantRecord, threads: int = 1) -> Session:
    """On one thread: the same sums, and so the same bytes, each time."""
    engines = [bundle.read(name) for name in variant.files]
    return open_session(
        variant.backend, engines, threads=threads if variant.backend in CPU_BACKENDS else None
    )


def _record(bundle: Bundle, variant: VariantRecord, session: Session, fp32: Logits | None) -> CanaryRecord:
    """What a bundle of today would hold: older ones did not ask their engines."""
    reopen = functools.partial(_open, bundle, variant)
    try:
        values = record_canaries(session, reopen, CanaryReference(fp32, variant.precision))
    except EngineError as error:  # it speaks of "its answers"
        raise SelfTestError(f"Variant {variant.name!r} answers wrongly here: {error.message}.") from error
    return CanaryRecord.from_dict(values, len(bundle.contract.classes))


def _find_reference(bundle: Bundle) -> Logits | None:
    """FP32's answers to the canaries: the bundle's, or those of its own FP32 engine for CPUs."""
    known = read_reference(bundle)
    exact = [
        v for v in bundle.variants if v.precision is Precision.FP32 and v.backend in CPU_BACKENDS and v.files
    ]
    for variant in exact if known is None else []:
        try:
            session = _open(bundle, variant)
        except (EnvironmentProblem, ResourceError):
            continue
        try:
            return answer_canaries(session)
        finally:
            session.close()
    return known


# -- files


def _write_beside(folder: Path, write: Callable[[Path], dict[str, Any]]) -> dict[str, Any]:
    """Let it be written under another name, and rename that in one step; raises ResourceError."""
    beside = place_beside(folder)
    try:
        (beside / "pictures").mkdir(parents=True)
        index = write(beside)
        beside.rename(folder)
    except OSError as error:
        raise ResourceError(
            f"{folder} cannot be written: {error.strerror or error}.",
            hint="Choose a folder of your own, on a disk with room.",
            path=error.filename or folder,
        ) from error
    finally:
        remove(beside)
    return index


def _write_all(
    bundle: Bundle,
    pictures: Sequence[MadePicture],
    frames: Frames,
    answers: Sequence[_Answers],
    left_out: Mapping[str, str],
    folder: Path,
) -> dict[str, Any]:
    """Arrays, pictures and the index that names them all."""
    first = len(frames) - len(pictures)
    index = {
        "schema_version": _SCHEMA_VERSION,
        "made_by": f"edgekiln {__version__}",
        "bundle": {"name": bundle.name, "digest": bundle.digest},
        "contract": bundle.contract.to_dict(),
        "contract_in_words": _tell_contract(bundle.contract),
        "frames": _save(frames, _FRAMES_NAME, folder),
        "rows": [
            *({"row": row, "shows": CANARIES[row][0], "picture": None} for row in range(first)),
            *(
                {"row": first + i, "shows": made.shows, "picture": _save_picture(made, folder)}
                for i, made in enumerate(pictures)
            ),
        ],
        "variants": [_save_answers(bundle, part, folder) for part in answers],
        "left_out": dict(left_out),
    }
    (folder / INDEX_NAME).write_text(json.dumps(index, indent=2, ensure_ascii=False) + "\n", "utf-8")
    return index


def _save(array: np.ndarray[Any, Any], name: str, folder: Path) -> dict[str, Any]:
    """Write an array as .npy (version 1.0, little endian, rows first), and say what it is."""
    np.save(folder / name, np.ascontiguousarray(array), allow_pickle=False)
    digest = hashlib.sha256((folder / name).read_bytes()).hexdigest()
    return {"file": name, "dtype": array.dtype.name, "shape": list(array.shape), "sha256": digest}


def _save_picture(made: MadePicture, folder: Path) -> dict[str, Any]:
    file = f"pictures/{made.file}"
    (folder / file).write_bytes(made.data)
    return {
        "file": file,
        "sha256": hashlib.sha256(made.data).hexdigest(),
        "decoded": _save(made.decode(), f"pictures/{made.stem}.npy", folder),
    }


def _save_answers(bundle: Bundle, part: _Answers, folder: Path) -> dict[str, Any]:
    variant, contract = part.variant, bundle.contract
    return {
        "name": variant.name,
        "backend": variant.backend,
        "precision": variant.precision.value,
        "verdict": variant.verdict,
        "files": {name: bundle.files[name].sha256 for name in variant.files},
        "input": {"name": INPUT_NAME, "dtype": "uint8", "shape": ["N", contract.height, contract.width, 3]},
        "output": {"name": OUTPUT_NAME, "dtype": "float32", "shape": ["N", len(contract.classes)]},
        "logits": _save(part.logits, f"logits.{variant.name}.npy", folder),
        "tolerances": _save(part.tolerances, f"tolerances.{variant.name}.npy", folder),
        "canaries": "recorded where it was judged"
        if part.recorded
        else "answered here: its bundle records none",
        "rows_missing": None if part.problem is None else f"it does not run here: {part.problem}",
    }


def _tell_contract(contract: Contract) -> list[str]:
    """How a picture becomes a row of frames, step by step; docs/images.md has the rest."""
    size = f"{contract.height} rows of {contract.width} pixels"
    antialiased = (
        f"Pillow's filter {contract.interpolation!r}, which takes all pixels into account when it shrinks"
    )
    if contract.resize == "squash":
        resize = f"Resize it to exactly {size}, whatever its aspect ratio, with {antialiased}."
    else:
        resize = (
            f"Resize it so that its shorter side has {contract.shorter_side} pixels and its aspect ratio stays, with "
            f"{antialiased}. Cut {size} out of its centre."
        )
    return [
        _tell_decoding(contract.sensor_bits),
        f"Lay transparent pixels upon RGB {contract.background}; repeat grey over the three channels.",
        "Order the channels red, green, blue, and keep them in the last axis.",
        resize,
        f"Give uint8 (N, {contract.height}, {contract.width}, 3) to the input {INPUT_NAME!r}. Do not normalize: the "
        "graph does.",
        f"The output {OUTPUT_NAME!r} is float32 (N, {len(contract.classes)}): a logit for each class, in the order "
        f"{', '.join(contract.classes)}. Softmax makes scores of them.",
        "Frames 0 to 15 are input as it is. Each later one is what must come of its picture; another resizing gives "
        "other pixels, and how much that matters is told by the logits and their tolerances.",
    ]


def _tell_decoding(bits: int | None) -> str:
    turn = "and turn it as its EXIF orientation says"
    if bits is None:
        return f"Decode the picture to 8 bits a channel, {turn}."
    white = white_of(bits)
    return (
        f"Decode the picture, {turn}. A sample of 16 bits becomes value * 255 / {white}, rounded (no value lies "
        f"half-way between two levels); a value above {white} is an error. A sample of 8 bits stays as it is."
    )
