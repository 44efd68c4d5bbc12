"""The manifest of a bundle: every file by sha256, every variant with its verdict, the contract. Read and written.

Schema policy: ``schema_version`` is "major.minor". A reader takes every minor version of its own major, unknown
fields included, and refuses another major. This module opens nothing of what a manifest names.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from edgekiln.runtime.backends import CPU_BACKENDS, Backend
from edgekiln.runtime.bundles.canaries import CanaryRecord
from edgekiln.runtime.bundles.judged_with import VERDICT_KIND
from edgekiln.runtime.bundles.machine_kind import MachineKind
from edgekiln.runtime.bundles.source import FRESH_COPY, hash_file
from edgekiln.runtime.bundles.times import TIMES, MeasuredTime, parse_times
from edgekiln.runtime.contract import Contract
from edgekiln.runtime.errors import BundleError, ContractError, EdgekilnError
from edgekiln.runtime.spec import Precision

__all__ = [
    "MANIFEST_NAME",
    "MAX_MANIFEST_BYTES",
    "MAX_SIGNATURE_BYTES",
    "NOT_COMPARED",
    "PREFERENCE",
    "SCHEMA_VERSION",
    "SIGNATURE_NAME",
    "UNLISTED",
    "FastDecodeRecord",
    "FileRecord",
    "Manifest",
    "VariantRecord",
    "Verdict",
    "parse_manifest",
    "write_manifest",
]

Verdict = Literal["pass", "fail", "inconclusive", "not-run", "unverified"]

MANIFEST_NAME = "manifest.json"
SCHEMA_VERSION = "1.2"
MAX_MANIFEST_BYTES = 16 * 2**20
SIGNATURE_NAME = "model.sig"
MAX_SIGNATURE_BYTES = 4 * 2**20
UNLISTED = frozenset({MANIFEST_NAME, SIGNATURE_NAME})
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
_SAFE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")

PREFERENCE: tuple[tuple[Backend, Precision], ...] = (
    ("tensorrt", Precision.INT8),
    ("tensorrt", Precision.FP16),
    ("tensorrt", Precision.BF16),  # as fast as FP16 by NVIDIA's tables, with fewer digits
    ("tensorrt-rtx", Precision.FP16),
    ("tensorrt-rtx", Precision.BF16),
    ("onnxruntime-cuda", Precision.FP16),
    ("tensorrt", Precision.FP32),
    ("tensorrt-rtx", Precision.FP32),
    ("tensorrt-rtx", Precision.INT8),  # unfused there: slower than FP16 as far as its plans tell
    ("onnxruntime-cuda", Precision.FP32),
    ("onnxruntime-cpu", Precision.INT8),
    ("openvino", Precision.INT8),  # as fast or faster, but slower to load: docs/backends.md
    ("openvino", Precision.BF16),
    ("onnxruntime-cpu", Precision.FP32),
    ("openvino", Precision.FP32),
    ("onnxruntime-cpu", Precision.FP16),
)
"""``load`` without a variant takes the first of these that passed its gate and can run here, where nothing was measured
on this kind of machine (``times.py``): GPU before CPU, then the precision that is fastest there (CPUs have no FP16
arithmetic, so it comes last on them)."""


@dataclass(frozen=True, slots=True)
class FileRecord:
    """What the manifest says of one file: sha256 as hex, size in bytes."""

    sha256: str
    size: int


@dataclass(frozen=True, slots=True)
class FastDecodeRecord:
    """Whether an engine's large JPEGs may be decoded at a fraction of their size, and what that was decided by.

    Attributes:
        allowed: every one of enough pictures got the same class both ways, within the bound.
        reason: in a sentence.
        pictures: of the evaluation split.
        scaled: those of them that fast decoding makes another array of, so that they are evidence.
        flipped: those of these that got another class.
        mean_difference, max_difference: the largest of a picture, in levels of 255: its mean, and any single value.
    """

    allowed: bool
    reason: str
    pictures: int = 0
    scaled: int = 0
    flipped: int = 0
    mean_difference: float = 0.0
    max_difference: int = 0


NOT_COMPARED = FastDecodeRecord(False, "the bundle records no comparison of fast and plain decoding.")


@dataclass(frozen=True, slots=True)
class VariantRecord:
    """One engine of a bundle and what was found about it.

    Attributes:
        file: its name in the bundle, the first of ``files``; ``None`` where it could not be made here.
        files: all its files; several where there is one static engine for each batch size.
        source: the ONNX file that ``edgekiln build`` makes its engine from, for TensorRT variants.
        fallback_source: the FP16 graph that may stand in for an INT8 one that does not build, where the recipe allows.
        fast_decode: what was found about decoding JPEGs at a fraction of their size; ``figures`` hold it too.
        kind: of the machine that the verdict holds for; ``None`` where the bundle does not say.
        times: what a call took, each on another kind of machine.
        verdict: of the gate; only ``pass`` is deployable.
        reason: the verdict in a sentence.
        figures: accuracy, difference to the baseline, latency, audit and machine, as in report.json.
        canaries: what it answered to made pictures where it was judged; ``None`` where that was not recorded.
    """

    name: str
    backend: Backend
    precision: Precision
    file: str | None
    verdict: Verdict
    reason: str
    required: bool
    figures: Mapping[str, Any] = field(repr=False)
    files: tuple[str, ...] = ()
    source: str | None = None
    fallback_source: str | None = None
    fast_decode: FastDecodeRecord = NOT_COMPARED
    canaries: CanaryRecord | None = field(default=None, repr=False)
    kind: MachineKind | None = None
    times: tuple[MeasuredTime, ...] = ()

    @property
    def device(self) -> Literal["cpu", "cuda"]:
        """What its backend runs on."""
        return "cpu" if self.backend in CPU_BACKENDS else "cuda"

    @property
    def deployable(self) -> bool:
        """Whether its gate passed."""
        return self.verdict == "pass"


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a manifest says; ``digest`` is the sha256 of its bytes, as hex, ``document`` its JSON."""

    name: str
    digest: str
    contract: Contract
    variants: tuple[VariantRecord, ...]
    files: Mapping[str, FileRecord]
    document: Mapping[str, Any] = field(repr=False)


def write_manifest(folder: Path, content: Mapping[str, Any]) -> str:
    """Write ``manifest.json`` over all files now in ``folder``; returns its sha256 as hex.

    ``content`` holds ``name``, ``contract``, ``variants`` and anything else worth keeping; the schema version
    and the list of files are added here. Same content, same bytes. A signature is not listed: it covers the manifest.
    """
    files = {}
    for entry in sorted(folder.iterdir()):
        if entry.name in UNLISTED:
            continue
        digest, size = hash_file(entry)
        files[entry.name] = {"sha256": digest, "size": size}
    document = {**content, "schema_version": SCHEMA_VERSION, "files": files}
    raw = (json.dumps(document, sort_keys=True, indent=2, ensure_ascii=False) + "\n").encode()
    (folder / MANIFEST_NAME).write_bytes(raw)
    return hashlib.sha256(raw).hexdigest()


def parse_manifest(raw: bytes, path: Path) -> Manifest:
    """Read the bytes of the manifest at ``path``; nothing of what they name is opened.

    Raises:
        BundleError: too long, no valid manifest, or of another major schema.
        ContractError: its contract cannot be read.
    """
    if len(raw) > MAX_MANIFEST_BYTES:
        raise BundleError(f"{path} has over {MAX_MANIFEST_BYTES} bytes.", hint=FRESH_COPY, path=path)
    try:
        document = json.loads(raw.decode())
        if not isinstance(document, dict):
            raise TypeError("not a JSON object")
        if _SURROGATE.search(raw):  # half of a pair goes into no file and no terminal
            json.dumps(document, ensure_ascii=False).encode()
        _check_version(str(document["schema_version"]), path)
        files = {
            _file_name(name): FileRecord(_hex(f["sha256"]), _size(f["size"]))
            for name, f in document["files"].items()
        }
        contract = Contract.from_dict(document["contract"])
        classes = len(contract.classes)
        variants = tuple(_parse_variant(v, files, classes) for v in document["variants"])
        if len({v.name for v in variants}) != len(variants):
            raise ValueError("two variants have the same name")
        if document.get("contract_digest", contract.digest) != contract.digest:
            raise ValueError("the contract was changed: its digest is another")
        _check_provenance(document.get("provenance"))
        name = _safe_name(document["name"])
        return Manifest(name, hashlib.sha256(raw).hexdigest(), contract, variants, files, document)
    except ContractError as error:
        raise ContractError(f"{path}: {error.message}", hint=error.hint, path=path) from error
    except EdgekilnError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise BundleError(
            f"{path} is not a valid manifest: {type(error).__name__}: {error}.", hint=FRESH_COPY, path=path
        ) from error


def _check_version(version: str, path: Path) -> None:
    if version.partition(".")[0] != SCHEMA_VERSION.partition(".")[0]:
        raise BundleError(
            f"{path} has schema version {version}; this edgekiln reads {SCHEMA_VERSION.partition('.')[0]}.x.",
            hint="Use the edgekiln version that made the bundle, or make it again.",
            path=path,
        )


def _check_provenance(provenance: object) -> None:
    """It says which recipe and which stages made the bundle; a bundle made by hand has none."""
    parts = provenance if isinstance(provenance, dict) else {}
    for part in (provenance, parts.get("recipe"), parts.get("parents")):
        if part is not None and not isinstance(part, dict):
            raise TypeError(f"its provenance holds {part!r}, wanted an object")


def _parse_variant(values: Mapping[str, Any], files: Mapping[str, FileRecord], classes: int) -> VariantRecord:
    name, backend, verdict, file = values["name"], values["backend"], values["verdict"], values["file"]
    precision = Precision(values["precision"])
    if (backend, precision) not in PREFERENCE:
        raise ValueError(
            f"variant {name!r} has unknown backend and precision {backend!r}, {precision.value!r}"
        )
    if verdict not in get_args(Verdict):
        raise ValueError(f"variant {name!r} has unknown verdict {verdict!r}")
    engines = tuple(values.get("files") or ([] if file is None else [file]))
    source, fallback = values.get("source"), values.get("fallback_source")
    for listed in (*engines, file, source, fallback):
        if listed is not None and listed not in files:
            raise ValueError(f"variant {name!r} has file {listed!r}, which is not listed")
    if (engines[0] if engines else None) != file:
        raise ValueError(f"variant {name!r} has file {file!r}, which is not the first of its files")
    if file is None and verdict != "not-run":
        raise ValueError(f"variant {name!r} has a verdict but no file")
    canaries = values.get("canaries")
    return VariantRecord(
        name=_safe_name(name),
        backend=backend,
        precision=precision,
        file=file,
        verdict=verdict,
        reason=str(values["reason"]),
        required=bool(values["required"]),
        figures=dict(values["figures"]),
        files=engines,
        source=source,
        fallback_source=fallback,
        fast_decode=_parse_fast_decode(values["figures"].get("fast_decode")),
        canaries=None if canaries is None else CanaryRecord.from_dict(canaries, classes),
        kind=MachineKind.from_dict(kind) if (kind := values["figures"].get(VERDICT_KIND)) else None,
        times=parse_times(values["figures"].get(TIMES) or ()),
    )


def _parse_fast_decode(values: object) -> FastDecodeRecord:
    """What a bundle of an earlier version does not have is no evidence; what contradicts itself is no manifest."""
    if values is None:
        return NOT_COMPARED
    if not isinstance(values, dict):
        raise TypeError(f"fast_decode is {values!r}, not an object")
    record = FastDecodeRecord(**{name: values[name] for name in FastDecodeRecord.__slots__})
    counts = (record.pictures, record.scaled, record.flipped, record.max_difference)
    if type(record.allowed) is not bool or not all(type(count) is int and count >= 0 for count in counts):
        raise ValueError(f"fast_decode is not valid: {values!r}")
    if type(record.reason) is not str or type(record.mean_difference) not in {int, float}:
        raise ValueError(f"fast_decode is not valid: {values!r}")
    if record.allowed and (record.flipped or not 0 < record.scaled <= record.pictures):
        raise ValueError(f"fast_decode is allowed by no evidence: {values!r}")
    return record


def _safe_name(name: object) -> str:
    if isinstance(name, str) and _SAFE_NAME.fullmatch(name):
        return name
    raise ValueError(f"unsafe name {name!r}: wanted {_SAFE_NAME.pattern}")


def _file_name(name: object) -> str:
    if name in UNLISTED:
        raise ValueError(f"it lists {name}, which no manifest lists")
    return _safe_name(name)


def _hex(digest: object) -> str:
    if isinstance(digest, str) and re.fullmatch(r"[0-9a-f]{64}", digest):
        return digest
    raise ValueError(f"{digest!r} is not a sha256")


def _size(size: object) -> int:
    if type(size) is int and size >= 0:
        return size
    raise ValueError(f"{size!r} is not a size")
