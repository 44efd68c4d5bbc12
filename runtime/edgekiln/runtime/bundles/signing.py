"""Signs a bundle: checks it, and writes ``model.sig`` beside its manifest. See ``signature.py`` for the format."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from edgekiln.runtime.bundles.beside import ENDING, place_beside, remove
from edgekiln.runtime.bundles.bundle import open_bundle
from edgekiln.runtime.bundles.keys import check_private_key, fingerprint
from edgekiln.runtime.bundles.manifest import MANIFEST_NAME, MAX_SIGNATURE_BYTES, SIGNATURE_NAME
from edgekiln.runtime.bundles.signature import make_signature
from edgekiln.runtime.errors import ResourceError, UsageError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey

__all__ = ["sign_bundle"]


def sign_bundle(path: str | os.PathLike[str], key: EllipticCurvePrivateKey, *, replace: bool = False) -> str:
    """Check a bundle and write ``model.sig`` into it; returns the fingerprint of the key.

    Args:
        path: the bundle's folder. An archive is made from a signed folder.
        key: from ``load_private_key``.
        replace: also where another signature is there.

    Raises:
        UsageError: it is no folder, or carries another signature; the key is none.
        BundleError: it does not agree with its manifest.
    """
    check_private_key(key)
    try:
        folder = Path(path)
        if folder.is_file():
            raise UsageError(
                f"{folder} is a file; a folder is signed.",
                hint="Sign the folder, then archive it.",
                path=folder,
            )
        for left in folder.glob(f".{SIGNATURE_NAME}.*.{ENDING}"):  # a signing that was killed
            remove(left)
    except (OSError, ValueError, TypeError) as error:
        raise UsageError(f"{str(path)[:200]!r} is no path of a bundle: {error}.") from error
    bundle = open_bundle(folder)
    digests = {MANIFEST_NAME: bundle.digest, **{name: record.sha256 for name, record in bundle.files.items()}}
    raw = make_signature(bundle.name, digests, key)
    if SIGNATURE_NAME in bundle.source.names():
        found = b"".join(bundle.source.read(SIGNATURE_NAME, MAX_SIGNATURE_BYTES))
        if found != raw and not replace:
            raise UsageError(
                f"{folder} has a signature already.",
                hint="--replace puts the new one in its place.",
                path=folder,
            )
    _replace_file(folder / SIGNATURE_NAME, raw)
    return fingerprint(key.public_key())


def _replace_file(path: Path, content: bytes) -> None:
    """Beside the bundle where that is possible: whoever loads it meanwhile would refuse a file that is not listed."""
    folder = path.parent.resolve()
    try:
        try:
            _write_and_move(content, place_beside(folder.with_name(f"{folder.name}.{path.name}")), path)
        except OSError:  # no right to write there, or another file system
            _write_and_move(content, place_beside(path), path)
    except OSError as error:
        raise ResourceError(
            f"{path} cannot be written: {error.strerror}.",
            hint="Check the disk and the permissions.",
            path=path,
        ) from error


def _write_and_move(content: bytes, temporary: Path, path: Path) -> None:
    try:
        with temporary.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        remove(temporary)
