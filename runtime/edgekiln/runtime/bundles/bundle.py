"""The bundle: a flat folder, or a zip of one, with a manifest that lists every file by sha256. What ships, and how it
is opened. It knows nothing of engines.

Nothing is handed to an engine library before the whole folder agrees with the manifest (``manifest.py``), and the bytes
that were hashed are the bytes that are loaded. A signature, ``model.sig``, covers the manifest and every file, so the
manifest does not list it; it is checked first, where keys are trusted.
"""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekiln.runtime.bundles.manifest import (
    MANIFEST_NAME,
    MAX_MANIFEST_BYTES,
    MAX_SIGNATURE_BYTES,
    SIGNATURE_NAME,
    UNLISTED,
    FileRecord,
    VariantRecord,
    parse_manifest,
)
from edgekiln.runtime.bundles.source import FRESH_COPY, BundleSource, FolderSource, hash_chunks
from edgekiln.runtime.contract import Contract
from edgekiln.runtime.errors import BundleError, EdgekilnError, ResourceError, SignatureError, UsageError

if TYPE_CHECKING:
    from edgekiln.runtime.bundles.keys import KeySource
    from edgekiln.runtime.bundles.signature import SignedContent

__all__ = ["Bundle", "check_usable", "open_bundle"]

_WHERE_BUNDLES_ARE = "`edgekiln run` prints the path of the bundle that it made: RUNS/NAME/bundle."


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

    def _repr_html_(self) -> str:
        """What a notebook shows: the variants with their verdicts. Its folder is not named: notebooks are passed on."""
        from edgekiln.runtime.bundles.notebook import show_variants

        signed = f"signed by {self.signer[:12]}" if self.signer else "signature not asked for"
        return show_variants(
            f"Bundle {self.name}, {self.digest[:12]}, {signed}",
            ((v.name, v.backend, v.precision.value, v.verdict, v.reason) for v in self.variants),
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
        from edgekiln.runtime.bundles.archive import read_zip

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
    from edgekiln.runtime.bundles.keys import load_public_keys
    from edgekiln.runtime.bundles.signature import verify_signature

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


def check_usable(variant: VariantRecord, *, allow_unverified: bool) -> None:
    """That a variant, asked for by name, can be loaded or packed.

    Raises:
        UsageError: it was never built, or its gate did not pass and ``allow_unverified`` is not set.
    """
    if variant.file is None:
        raise UsageError(
            f"Variant {variant.name!r} was never built: {variant.reason}",
            hint="Take another variant. `edgekiln build` makes TensorRT engines on the machine that runs them.",
        )
    if not variant.deployable and not allow_unverified:
        raise UsageError(
            f"Variant {variant.name!r} is not deployable (verdict {variant.verdict}): {variant.reason}",
            hint="Take another variant, or allow this one with allow_unverified=True (--allow-unverified).",
        )
