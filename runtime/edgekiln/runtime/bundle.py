"""The bundle: a flat folder, or a zip of one, with a manifest that lists every file by sha256. What ships, and how it
is opened.

Schema policy: ``schema_version`` is "major.minor". A reader takes every minor version of its own major, unknown
fields included, and refuses another major. Nothing is handed to an engine library before the whole folder
agrees with the manifest, and the bytes that were hashed are the bytes that are loaded. A signature, ``model.sig``,
covers the manifest and every file, so the manifest does not list it; it is checked first, where keys are trusted.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from edgekiln.runtime.backends import CPU_BACKENDS, Backend, open_session
from edgekiln.runtime.bundle_source import FRESH_COPY, BundleSource, FolderSource, hash_chunks, hash_file
from edgekiln.runtime.classifier import Classifier, Selection, reloadable
from edgekiln.runtime.contract import Contract
from edgekiln.runtime.errors import (
    BundleError,
    ContractError,
    EdgekilnError,
    EnvironmentProblem,
    ResourceError,
    SignatureError,
    UsageError,
)
from edgekiln.runtime.session import Session
from edgekiln.runtime.spec import Precision

if TYPE_CHECKING:
    from edgekiln.runtime.signing import KeySource, SignedContent

__all__ = [
    "MANIFEST_NAME",
    "PREFERENCE",
    "SCHEMA_VERSION",
    "SIGNATURE_NAME",
    "Bundle",
    "FileRecord",
    "VariantRecord",
    "Verdict",
    "hash_file",
    "load",
    "open_bundle",
    "write_manifest",
]

Verdict = Literal["pass", "fail", "inconclusive", "not-run", "unverified"]

MANIFEST_NAME = "manifest.json"
SCHEMA_VERSION = "1.1"
MAX_MANIFEST_BYTES = 16 * 2**20
SIGNATURE_NAME = "model.sig"
MAX_SIGNATURE_BYTES = 4 * 2**20
_UNLISTED = frozenset({MANIFEST_NAME, SIGNATURE_NAME})
_SAFE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")

PREFERENCE: tuple[tuple[Backend, Precision], ...] = (
    ("tensorrt", Precision.INT8),
    ("tensorrt", Precision.FP16),
    ("tensorrt-rtx", Precision.FP16),
    ("onnxruntime-cuda", Precision.FP16),
    ("tensorrt", Precision.FP32),
    ("tensorrt-rtx", Precision.FP32),
    ("tensorrt-rtx", Precision.INT8),  # unfused there: slower than FP16 as far as its plans tell
    ("onnxruntime-cuda", Precision.FP32),
    ("onnxruntime-cpu", Precision.INT8),
    ("openvino", Precision.INT8),  # as fast or faster, but slower to load: docs/backends.md
    ("onnxruntime-cpu", Precision.FP32),
    ("openvino", Precision.FP32),
    ("onnxruntime-cpu", Precision.FP16),
)
"""``load`` without a variant takes the first of these that passed its gate and can run here: GPU before CPU,
then the precision that is fastest there (CPUs have no FP16 arithmetic, so it comes last on them)."""

_WHERE_BUNDLES_ARE = "`edgekiln run` prints the path of the bundle that it made: RUNS/NAME/bundle."

_log = logging.getLogger("edgekiln.runtime")


@dataclass(frozen=True, slots=True)
class FileRecord:
    """What the manifest says of one file: sha256 as hex, size in bytes."""

    sha256: str
    size: int


@dataclass(frozen=True, slots=True)
class VariantRecord:
    """One engine of a bundle and what was found about it.

    Attributes:
        file: its name in the bundle, the first of ``files``; ``None`` where it could not be made here.
        files: all its files; several where there is one static engine for each batch size.
        source: the ONNX file that ``edgekiln build`` makes its engine from, for TensorRT variants.
        fallback_source: the FP16 graph that may stand in for an INT8 one that does not build, where the recipe allows.
        verdict: of the gate; only ``pass`` is deployable.
        reason: the verdict in a sentence.
        figures: accuracy, difference to the baseline, latency, audit and machine, as in report.json.
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

    @property
    def device(self) -> Literal["cpu", "cuda"]:
        """What its backend runs on."""
        return "cpu" if self.backend in CPU_BACKENDS else "cuda"

    @property
    def deployable(self) -> bool:
        """Whether its gate passed."""
        return self.verdict == "pass"


@dataclass(frozen=True, slots=True)
class Bundle:
    """An opened bundle, every file of which agreed with the manifest when it was opened.

    Attributes:
        path: the folder or archive.
        digest: sha256 of the manifest, as hex.
        signer: fingerprint of the trusted key that signed it; ``None`` where no trusted keys were given, and then
            a signature that may be there proves nothing.
    """

    path: Path
    name: str
    digest: str
    contract: Contract
    variants: tuple[VariantRecord, ...]
    files: Mapping[str, FileRecord]
    manifest: Mapping[str, Any] = field(repr=False)
    source: BundleSource = field(repr=False, compare=False)
    signer: str | None = None

    def variant(self, name: str) -> VariantRecord:
        """The variant of that name; raises UsageError with the names there are."""
        for variant in self.variants:
            if variant.name == name:
                return variant
        known = ", ".join(v.name for v in self.variants)
        raise UsageError(
            f"The bundle {self.path} has no variant {name!r}; it has: {known}.",
            hint="Give one of these, or none: then the best that runs here is taken.",
            path=self.path,
        )

    def read(self, name: str) -> bytes:
        """The bytes of one file, hashed as they are returned; raises BundleError where they changed."""
        record = self.files.get(name)
        if record is None:
            raise BundleError(f"{name!r} is not listed in the manifest.", hint=FRESH_COPY, path=self.path)
        return _read_checked(self.source, name, record)

    def members(self) -> Iterator[tuple[str, bytes]]:
        """Every file by name, manifest and signature first, hashed as it is returned."""
        manifest = b"".join(self.source.read(MANIFEST_NAME, MAX_MANIFEST_BYTES))
        if hashlib.sha256(manifest).hexdigest() != self.digest:
            raise BundleError(f"{self.path / MANIFEST_NAME} was changed since it was read.", path=self.path)
        yield MANIFEST_NAME, manifest
        if SIGNATURE_NAME in self.source.names():
            yield SIGNATURE_NAME, b"".join(self.source.read(SIGNATURE_NAME, MAX_SIGNATURE_BYTES))
        for name in sorted(self.files):
            yield name, self.read(name)


def open_bundle(path: str | os.PathLike[str], *, trusted_keys: Sequence[KeySource] | None = None) -> Bundle:
    """Open a bundle, a folder or a ``.zip``, and check every byte of it against its manifest.

    Args:
        path: the folder or archive. An archive is read into memory; nothing of it is written to disk.
        trusted_keys: public keys, as paths of PEM files or PEM bytes; the bundle must be signed by one of them.

    Raises:
        UsageError: there is no such folder or archive, or it is no bundle; a key that is none.
        SignatureError: with ``trusted_keys``, no signature, a foreign one, or one over other content.
        BundleError: a changed byte, a missing or extra file, a link, or a manifest that cannot be read.
    """
    source = _open_source(Path(path))
    signed = None if trusted_keys is None else _verify_signature(source, trusted_keys)
    raw = b"".join(source.read(MANIFEST_NAME, MAX_MANIFEST_BYTES))
    if signed is not None:
        signed.check(MANIFEST_NAME, hashlib.sha256(raw).hexdigest())
    bundle = _parse_manifest(source, raw)
    if signed is not None:
        _check_all_signed(bundle, signed)
        bundle = replace(bundle, signer=signed.fingerprint)
    _check_listing(bundle)
    for name, record in bundle.files.items():
        digest, size = hash_chunks(source.read(name, record.size))
        _compare(bundle.path / name, record, digest, size)
    return bundle


def _open_source(path: Path) -> BundleSource:
    if path.suffix.lower() == ".zip" and not path.is_dir():
        from edgekiln.runtime.archive import read_zip

        source: BundleSource = read_zip(path)
    elif path.is_dir():
        source = FolderSource(path)
    else:
        found = (
            f"{path} is a file, a bundle is a folder or a .zip."
            if path.exists()
            else f"There is no folder {path}."
        )
        raise UsageError(found, hint=_WHERE_BUNDLES_ARE, path=path)
    if MANIFEST_NAME not in source.names():
        inside = path / "bundle"
        raise UsageError(
            f"{path} is no bundle: it has no {MANIFEST_NAME}.",
            hint=f"Did you mean {inside}?" if (inside / MANIFEST_NAME).exists() else _WHERE_BUNDLES_ARE,
            path=path,
        )
    return source


def _verify_signature(source: BundleSource, trusted_keys: Sequence[KeySource]) -> SignedContent:
    """What a trusted key signed; nothing else of the bundle was read."""
    from edgekiln.runtime.signing import load_public_keys, verify_signature

    keys = load_public_keys(trusted_keys)
    path = source.path / SIGNATURE_NAME
    if SIGNATURE_NAME not in source.names():
        raise SignatureError(
            f"{source.path} is not signed: it has no {SIGNATURE_NAME}, and a trusted key is asked for.",
            hint="`edgekiln sign BUNDLE --key KEY` signs it, where you made it.",
            path=source.path,
        )
    return verify_signature(b"".join(source.read(SIGNATURE_NAME, MAX_SIGNATURE_BYTES)), keys, path)


def _check_all_signed(bundle: Bundle, signed: SignedContent) -> None:
    """The signature covers exactly the files that the manifest lists, with the same digests."""
    for name, record in bundle.files.items():
        signed.check(name, record.sha256)
    for name in sorted(set(signed.digests) - set(bundle.files) - {MANIFEST_NAME}):
        raise SignatureError(
            f"The signature of {bundle.path} covers {name}, which its manifest does not list.",
            path=bundle.path,
        )


def _read_checked(source: BundleSource, name: str, record: FileRecord) -> bytes:
    data = b"".join(source.read(name, record.size))
    _compare(source.path / name, record, hashlib.sha256(data).hexdigest(), len(data))
    return data


@reloadable
def load(
    path: str | os.PathLike[str],
    *,
    variant: str | None = None,
    device: Literal["cpu", "cuda"] | None = None,
    threads: int | None = None,
    allow_unverified: bool = False,
    trusted_keys: Sequence[KeySource] | None = None,
) -> Classifier:
    """Open a bundle and load one of its engines.

    Args:
        path: the bundle's folder, or a ``.zip`` of it.
        variant: by name; ``None`` takes the first in ``PREFERENCE`` that passed its gate and runs here.
            ``classifier.variant.reason`` says why it was taken.
        device: restrict the choice to ``cpu`` or ``cuda``.
        threads: CPU worker threads; ``None`` leaves it to the engine library.
        allow_unverified: also load a variant, named by ``variant``, whose gate did not pass.
        trusted_keys: public keys, as paths of PEM files or PEM bytes. The bundle must be signed by one of them; this
            is checked before its manifest is read or an engine library is handed a byte. ``None`` asks for none.

    Raises:
        UsageError: no such folder or variant, or one that did not pass.
        SignatureError: no signature, a foreign one, or one over other content.
        BundleError: the bundle was altered.
        EnvironmentProblem: nothing that passed can run here.
    """
    if device not in {None, "cpu", "cuda"}:
        raise UsageError(f"Unknown device {device!r}; known: cpu, cuda.")
    if allow_unverified and variant is None:
        raise UsageError(
            "allow_unverified needs a variant by name: only engines that passed are chosen automatically.",
            hint="Name it with variant=... (--variant NAME); `edgekiln inspect BUNDLE` lists them.",
        )
    bundle = open_bundle(path, trusted_keys=trusted_keys)
    if variant is not None:
        chosen = bundle.variant(variant)
        _check_loadable(chosen, device, allow_unverified)
        session = _open(bundle, chosen, threads)
        return Classifier(session, bundle.contract, _selection(chosen, "asked for by name"))
    return _load_preferred(bundle, device, threads)


def _check_loadable(variant: VariantRecord, device: str | None, allow_unverified: bool) -> None:
    if variant.file is None:
        raise UsageError(
            f"Variant {variant.name!r} was never built: {variant.reason}",
            hint="Take another variant; `edgekiln build` makes TensorRT engines on the machine that runs them.",
        )
    if not variant.deployable and not allow_unverified:
        raise UsageError(
            f"Variant {variant.name!r} is not deployable (verdict {variant.verdict}): {variant.reason}",
            hint="Take another variant, or load it with allow_unverified=True (--allow-unverified).",
        )
    if device is not None and variant.device != device:
        raise UsageError(
            f"Variant {variant.name!r} runs on {variant.backend}, not on {device}.",
            hint="Leave the device out, or take another variant.",
        )


def _load_preferred(bundle: Bundle, device: str | None, threads: int | None) -> Classifier:
    passed = [v for v in bundle.variants if v.deployable and device in {None, v.device}]
    if not passed:
        raise _nothing_passed(bundle, device)
    skipped: list[str] = []
    for candidate in sorted(passed, key=lambda v: PREFERENCE.index((v.backend, v.precision))):
        try:
            session = _open(bundle, candidate, threads)
        except (EnvironmentProblem, ResourceError) as problem:
            _log.info("variant %s cannot run here: %s", candidate.name, problem)
            skipped.append(f"{candidate.name} cannot run here ({problem.message})")
            continue
        reason = "; ".join(["first in the order of preference that passed and runs here", *skipped])
        return Classifier(session, bundle.contract, _selection(candidate, reason))
    raise EnvironmentProblem(
        f"Nothing in {bundle.path} can run here: {'; '.join(skipped)}.",
        hint="`edgekiln doctor BUNDLE` tells what each engine lacks"
        + ("; without the device, an engine for the CPU may be taken." if device else "."),
        path=bundle.path,
    )


def _nothing_passed(bundle: Bundle, device: str | None) -> UsageError:
    candidates = [v for v in bundle.variants if device in {None, v.device}]
    if device and not candidates:
        there = ", ".join(f"{v.name} on {v.backend}" for v in bundle.variants)
        return UsageError(
            f"{bundle.path} has no variant for {device}; it has: {there}.",
            hint="Leave the device out, or make a variant for it: add one to the recipe and run it again.",
            path=bundle.path,
        )
    verdicts = ", ".join(f"{v.name}: {v.verdict}" for v in candidates)
    return UsageError(
        f"No variant of {bundle.path} passed its gate{f' for {device}' if device else ''} ({verdicts}).",
        hint="Name one (variant=, --variant) with allow_unverified=True (--allow-unverified) to load it all the same.",
        path=bundle.path,
    )


def _open(bundle: Bundle, variant: VariantRecord, threads: int | None) -> Session:
    return open_session(variant.backend, [bundle.read(name) for name in variant.files], threads=threads)


def _selection(variant: VariantRecord, reason: str) -> Selection:
    return Selection(variant.name, variant.backend, variant.precision.value, reason)


def write_manifest(folder: Path, content: Mapping[str, Any]) -> str:
    """Write ``manifest.json`` over all files now in ``folder``; returns its sha256 as hex.

    ``content`` holds ``name``, ``contract``, ``variants`` and anything else worth keeping; the schema version
    and the list of files are added here. Same content, same bytes. A signature is not listed: it covers the manifest.
    """
    files = {}
    for entry in sorted(folder.iterdir()):
        if entry.name in _UNLISTED:
            continue
        digest, size = hash_file(entry)
        files[entry.name] = {"sha256": digest, "size": size}
    document = {**content, "schema_version": SCHEMA_VERSION, "files": files}
    raw = (json.dumps(document, sort_keys=True, indent=2, ensure_ascii=False) + "\n").encode()
    (folder / MANIFEST_NAME).write_bytes(raw)
    return hashlib.sha256(raw).hexdigest()


def _compare(path: Path, record: FileRecord, digest: str, size: int) -> None:
    if size == record.size and digest == record.sha256:
        return
    raise BundleError(
        f"{path} was changed: sha256 {digest[:12]}..., the manifest says {record.sha256[:12]}... "
        f"({record.size} bytes).",
        hint=FRESH_COPY,
        path=path,
    )


def _check_listing(bundle: Bundle) -> None:
    names = bundle.source.names()
    if SIGNATURE_NAME in names:  # exempt by name, and so a plain file or nothing
        hash_chunks(bundle.source.read(SIGNATURE_NAME, MAX_SIGNATURE_BYTES))
    present = names - _UNLISTED
    for name in sorted(set(bundle.files) - present):
        raise BundleError(f"{name} is missing from {bundle.path}.", hint=FRESH_COPY, path=bundle.path / name)
    for name in sorted(present - set(bundle.files)):
        raise BundleError(
            f"{bundle.path / name} is not listed in the manifest.",
            hint="Remove it: a bundle holds exactly what its manifest lists.",
            path=bundle.path / name,
        )


def _parse_manifest(source: BundleSource, raw: bytes) -> Bundle:
    path = source.path / MANIFEST_NAME
    if len(raw) > MAX_MANIFEST_BYTES:
        raise BundleError(f"{path} has over {MAX_MANIFEST_BYTES} bytes.", hint=FRESH_COPY, path=path)
    try:
        document = json.loads(raw)
        if not isinstance(document, dict):
            raise TypeError("not a JSON object")
        _check_version(str(document["schema_version"]), path)
        files = {
            _file_name(name): FileRecord(_hex(f["sha256"]), _size(f["size"]))
            for name, f in document["files"].items()
        }
        variants = tuple(_parse_variant(v, files) for v in document["variants"])
        if len({v.name for v in variants}) != len(variants):
            raise ValueError("two variants have the same name")
        contract = Contract.from_dict(document["contract"])
        if document.get("contract_digest", contract.digest) != contract.digest:
            raise ValueError("the contract was changed: its digest is another")
        digest = hashlib.sha256(raw).hexdigest()
        name = _safe_name(document["name"])
        return Bundle(source.path, name, digest, contract, variants, files, document, source)
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


def _parse_variant(values: Mapping[str, Any], files: Mapping[str, FileRecord]) -> VariantRecord:
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
    )


def _safe_name(name: object) -> str:
    if isinstance(name, str) and _SAFE_NAME.fullmatch(name):
        return name
    raise ValueError(f"unsafe name {name!r}: wanted {_SAFE_NAME.pattern}")


def _file_name(name: object) -> str:
    if name in _UNLISTED:
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
