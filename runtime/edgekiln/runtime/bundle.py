"""The bundle: a flat folder, or a zip of one, with a manifest that lists every file by sha256. What ships, and how it
is opened.

Nothing is handed to an engine library before the whole folder agrees with the manifest (``manifest.py``), and the bytes
that were hashed are the bytes that are loaded. A signature, ``model.sig``, covers the manifest and every file, so the
manifest does not list it; it is checked first, where keys are trusted.
"""

from __future__ import annotations

import errno
import hashlib
import logging
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from edgekiln.runtime.arguments import check_strings, check_threads
from edgekiln.runtime.backends import ONNX_BACKENDS, open_session
from edgekiln.runtime.bundle_source import FRESH_COPY, BundleSource, FolderSource, hash_chunks, hash_file
from edgekiln.runtime.classifier import Classifier, Selection, reloadable
from edgekiln.runtime.contract import Contract
from edgekiln.runtime.errors import (
    BundleError,
    EdgekilnError,
    EnvironmentProblem,
    ResourceError,
    SignatureError,
    UsageError,
)
from edgekiln.runtime.judged_with import find_versions, tell_other_version
from edgekiln.runtime.manifest import (
    MANIFEST_NAME,
    MAX_MANIFEST_BYTES,
    PREFERENCE,
    SCHEMA_VERSION,
    SIGNATURE_NAME,
    UNLISTED,
    FileRecord,
    VariantRecord,
    Verdict,
    parse_manifest,
    write_manifest,
)
from edgekiln.runtime.onnx_metadata import CONTRACT_DIGEST_KEY, read_metadata

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

MAX_SIGNATURE_BYTES = 4 * 2**20
_WHERE_BUNDLES_ARE = "`edgekiln run` prints the path of the bundle that it made: RUNS/NAME/bundle."
_WHERE_ENGINES_ARE_BUILT = "`edgekiln build` makes TensorRT engines on the machine that runs them."

_log = logging.getLogger("edgekiln.runtime")


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
        ResourceError: the folder or a file of it may not be read.
        SignatureError: with ``trusted_keys``, no signature, a foreign one, or one over other content.
        BundleError: a changed byte, a missing or extra file, a link, or a manifest that cannot be read.
    """
    try:
        source = _open_source(Path(path))
    except (OSError, ValueError, TypeError) as error:
        raise _explain_unreadable(str(path), error) from error
    signed = None if trusted_keys is None else _verify_signature(source, trusted_keys)
    raw = b"".join(source.read(MANIFEST_NAME, MAX_MANIFEST_BYTES))
    if signed is not None:
        signed.check(MANIFEST_NAME, hashlib.sha256(raw).hexdigest())
    manifest = parse_manifest(raw, source.path / MANIFEST_NAME)
    bundle = Bundle(
        source.path,
        manifest.name,
        manifest.digest,
        manifest.contract,
        manifest.variants,
        manifest.files,
        manifest.document,
        source,
    )
    if signed is not None:
        _check_all_signed(bundle, signed)
        bundle = replace(bundle, signer=signed.fingerprint)
    _check_listing(bundle)
    for name, record in bundle.files.items():
        digest, size = hash_chunks(source.read(name, record.size))
        _compare(bundle.path / name, record, digest, size)
    return bundle


def _explain_unreadable(path: str, error: OSError | ValueError | TypeError) -> EdgekilnError:
    if isinstance(error, OSError) and error.errno != errno.ENAMETOOLONG:
        hint = "Check the disk, who owns it, and its permissions."
        return ResourceError(f"{path} cannot be read: {error.strerror}.", hint=hint, path=path)
    return UsageError(f"{path[:200]!r} is no path: {error}.", hint=_WHERE_BUNDLES_ARE)  # a NUL, too


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


@dataclass(frozen=True, slots=True)
class _Options:
    """What ``load`` was asked for, whichever variant it takes."""

    threads: int | None
    fast_decode: Literal["auto"] | bool
    allow_operators: Collection[str]


@reloadable
def load(
    path: str | os.PathLike[str],
    *,
    variant: str | None = None,
    device: Literal["cpu", "cuda"] | None = None,
    threads: int | None = None,
    allow_unverified: bool = False,
    trusted_keys: Sequence[KeySource] | None = None,
    fast_decode: Literal["auto"] | bool = "auto",
    allow_operators: Collection[str] = (),
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
        fast_decode: whether large JPEGs are decoded at a fraction of their size: ``auto`` where the bundle records that
            no answer changed thereby on the pictures it was judged on, ``True`` refuses a variant without that record,
            ``False`` never. See ``fast_decode.py``.
        allow_operators: operators of other domains than ONNX's that an ONNX file may hold, as
            ``com.microsoft::Gelu``; without a name here they are refused before a library sees the file.

    Raises:
        UsageError: no such folder or variant, one that did not pass, or no record of fast decoding.
        EngineError: the model file is nothing that a library may be shown, or the library refused it.
        SignatureError: no signature, a foreign one, or one over other content.
        BundleError: the bundle was altered.
        EnvironmentProblem: nothing that passed can run here.
    """
    if device not in (None, "cpu", "cuda"):
        raise UsageError(f"Unknown device {device!r}; known: cpu, cuda.")
    check_threads(threads)
    check_strings("allow_operators", allow_operators)
    if not (fast_decode == "auto" or isinstance(fast_decode, bool)):
        raise UsageError(f"Unknown fast_decode {fast_decode!r}; known: 'auto', True, False.")
    if allow_unverified and variant is None:
        raise UsageError(
            "allow_unverified needs a variant by name: only engines that passed are chosen automatically.",
            hint="Name it with variant=... (--variant NAME); `edgekiln inspect BUNDLE` lists them.",
        )
    bundle = open_bundle(path, trusted_keys=trusted_keys)
    options = _Options(threads, fast_decode, frozenset(allow_operators))
    if variant is not None:
        chosen = bundle.variant(variant)
        _check_loadable(chosen, device, allow_unverified)
        return _open(bundle, chosen, "asked for by name", options)
    return _load_preferred(bundle, device, options)


def _check_loadable(variant: VariantRecord, device: str | None, allow_unverified: bool) -> None:
    if variant.file is None:
        raise UsageError(
            f"Variant {variant.name!r} was never built: {variant.reason}",
            hint=f"Take another variant. {_WHERE_ENGINES_ARE_BUILT}",
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


def _load_preferred(bundle: Bundle, device: str | None, options: _Options) -> Classifier:
    passed = [v for v in bundle.variants if v.deployable and device in {None, v.device}]
    if not passed:
        raise _nothing_passed(bundle, device)
    skipped: list[str] = []
    for candidate in sorted(passed, key=lambda v: PREFERENCE.index((v.backend, v.precision))):
        reason = "; ".join(["first in the order of preference that passed and runs here", *skipped])
        try:
            return _open(bundle, candidate, reason, options)
        except (EnvironmentProblem, ResourceError) as problem:
            _log.info("variant %s cannot run here: %s", candidate.name, problem)
            skipped.append(f"{candidate.name} cannot run here ({problem.message})")
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
    if any(v.file for v in candidates):
        hint = "Name one (variant=, --variant) with allow_unverified=True (--allow-unverified) to load it all the same."
    else:
        hint = _WHERE_ENGINES_ARE_BUILT
    return UsageError(
        f"No variant of {bundle.path} passed its gate{f' for {device}' if device else ''} ({verdicts}).",
        hint=hint,
        path=bundle.path,
    )


def _open(bundle: Bundle, variant: VariantRecord, reason: str, options: _Options) -> Classifier:
    fast = bool(options.fast_decode) and variant.fast_decode.allowed
    if options.fast_decode is True and not fast:
        raise UsageError(
            f"Variant {variant.name!r} may not decode fast: {variant.fast_decode.reason}",
            hint="fast_decode='auto' takes the plain path there; `establish_agreement` shows it on your own pictures.",
            path=bundle.path,
        )
    engines = [bundle.read(name) for name in variant.files]
    if variant.backend in ONNX_BACKENDS:
        _check_exported_for(bundle.contract, engines, bundle.path / str(variant.file))
    session = open_session(
        variant.backend,
        engines,
        threads=options.threads,
        allow_operators=options.allow_operators,
    )
    notice = tell_other_version(variant.backend, find_versions(bundle.manifest, variant.figures))
    if notice:
        _log.warning("variant %s was %s", variant.name, notice)
    selection = Selection(variant.name, variant.backend, variant.precision.value, reason, notice)
    return Classifier(session, bundle.contract, selection, fast_decode=fast)


def _check_exported_for(contract: Contract, models: Sequence[bytes], path: Path) -> None:
    """An ONNX file carries the digest of the contract that it was exported with; one that was made elsewhere, none.

    TensorRT's engines carry nothing of the kind: for them the manifest's word is all there is.
    """
    for model in models:
        if read_metadata(model, CONTRACT_DIGEST_KEY) not in (None, contract.digest):
            raise BundleError(
                f"{path} was exported for another contract than the manifest's: other classes, another size, or "
                "another way to prepare pictures.",
                hint=FRESH_COPY,
                path=path,
            )


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
    present = names - UNLISTED
    for name in sorted(set(bundle.files) - present):
        raise BundleError(f"{name} is missing from {bundle.path}.", hint=FRESH_COPY, path=bundle.path / name)
    for name in sorted(present - set(bundle.files)):
        raise BundleError(
            f"{bundle.path / name} is not listed in the manifest.",
            hint="Remove it: a bundle holds exactly what its manifest lists.",
            path=bundle.path / name,
        )
