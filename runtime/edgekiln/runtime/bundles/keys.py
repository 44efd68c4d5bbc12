"""Key pairs that sign bundles: made, read and checked. Elliptic curves in PEM; no service, no network.

Knows nothing of what is signed.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from edgekiln.runtime.errors import ResourceError, UsageError
from edgekiln.runtime.extras import import_extra

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey, EllipticCurvePublicKey

__all__ = [
    "HASH_OF_CURVE",
    "KeySource",
    "check_private_key",
    "fingerprint",
    "is_encrypted",
    "load_private_key",
    "load_public_keys",
    "write_key_pair",
]

KeySource: TypeAlias = str | os.PathLike[str] | bytes
"""A PEM file's path, or the PEM itself as bytes."""

HASH_OF_CURVE = {"secp256r1": "SHA256", "secp384r1": "SHA384", "secp521r1": "SHA512"}
"""The curves of the signature format, and the one hash that goes with each."""
_CURVE_NAMES = "P-256, P-384, P-521"
_MAX_KEY_BYTES = 2**16


def write_key_pair(stem: str | os.PathLike[str], passphrase: bytes | None = None) -> tuple[Path, Path]:
    """Make a P-256 key pair: STEM.key (PKCS #8 PEM, mode 0600) and STEM.pub. Existing files are never replaced.

    Args:
        stem: path without ending.
        passphrase: encrypts the private key.

    Raises:
        UsageError: one of the files exists, or their folder does not.
        ResourceError: they cannot be written.
    """
    if not isinstance(passphrase, bytes | None) or (
        passphrase is not None and not 0 < len(passphrase) < 1024
    ):
        raise UsageError("A passphrase is 1 to 1023 bytes.")
    paths = _name_pair(stem)
    private, public = _make_pair(passphrase)
    for path in paths:
        if os.path.lexists(path):  # False, too, for a name that cannot be: creating it tells
            raise UsageError(
                f"{path} exists, and keys are not replaced.", hint="Take another name.", path=path
            )
    _create(paths[0], private, 0o600)
    try:
        _create(paths[1], public, 0o644)
    except BaseException:  # half a pair would be in the way of the next attempt
        paths[0].unlink(missing_ok=True)
        raise
    return paths


def _name_pair(stem: str | os.PathLike[str]) -> tuple[Path, Path]:
    """Where the private and the public key go."""
    try:
        stem = Path(stem)
    except TypeError as error:
        raise UsageError(f"{stem!r} is no path.") from error
    if not stem.name:
        raise UsageError(
            f"{str(stem)!r} has no name to put .key and .pub behind.", hint="Give NAME, or FOLDER/NAME."
        )
    return stem.with_name(f"{stem.name}.key"), stem.with_name(f"{stem.name}.pub")


def _make_pair(passphrase: bytes | None) -> tuple[bytes, bytes]:
    """A new private key and its public one, in PEM."""
    ec = import_extra("cryptography.hazmat.primitives.asymmetric.ec", "sign")
    serialization = import_extra("cryptography.hazmat.primitives.serialization", "sign")
    key = ec.generate_private_key(ec.SECP256R1())
    protection = (
        serialization.NoEncryption()
        if passphrase is None
        else serialization.BestAvailableEncryption(passphrase)
    )
    private: bytes = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, protection
    )
    return private, _public_pem(key.public_key())


def _create(path: Path, content: bytes, mode: int) -> None:
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, mode)
    except FileExistsError as error:
        raise UsageError(f"{path} exists, and keys are not replaced.", path=path) from error
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UsageError(
            f"There is no folder {path.parent}.", hint="Make it first.", path=path.parent
        ) from error
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise ResourceError(f"{path} cannot be written: {error}.", path=path) from error
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    except BaseException as error:  # half a key would be in the way of the next attempt
        path.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise ResourceError(f"{path} cannot be written: {error.strerror}.", path=path) from error
        raise


def fingerprint(key: EllipticCurvePublicKey) -> str:
    """sha256 of the public key's PEM, as hex: what the format calls the key's hint."""
    return hashlib.sha256(_public_pem(key)).hexdigest()


def _public_pem(key: EllipticCurvePublicKey) -> bytes:
    serialization = import_extra("cryptography.hazmat.primitives.serialization", "sign")
    pem: bytes = key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    return pem


def load_public_keys(keys: Sequence[KeySource]) -> dict[str, EllipticCurvePublicKey]:
    """Public keys by their fingerprint.

    Raises:
        UsageError: none are given, or one is no public EC key on a curve of the format.
    """
    if isinstance(keys, str | bytes | os.PathLike) or not isinstance(keys, Iterable):
        raise UsageError(
            f"trusted_keys takes a list of keys, got {type(keys).__name__}.", hint="Put it in a list."
        )
    loaded = [_load_public_key(key) for key in keys]
    if not loaded:
        raise UsageError(
            "trusted_keys is empty: no bundle could be trusted.", hint="Leave it out to ask for no signature."
        )
    return {fingerprint(key): key for key in loaded}


def _load_public_key(key: KeySource) -> EllipticCurvePublicKey:
    raw, name = _read_key(key)
    if b"PRIVATE KEY" in raw:
        raise UsageError(
            f"{name} is a private key; a public one is wanted.", hint="Keep it off this machine."
        )
    serialization = import_extra("cryptography.hazmat.primitives.serialization", "sign")
    ec = import_extra("cryptography.hazmat.primitives.asymmetric.ec", "sign")
    try:
        public = serialization.load_pem_public_key(raw)
    except Exception as error:  # ValueError, UnsupportedAlgorithm, or whatever the parser thinks of
        raise UsageError(f"{name} is no public key in PEM: {error}.") from error
    if not isinstance(public, ec.EllipticCurvePublicKey):
        raise UsageError(f"{name} is of type {type(public).__name__}, wanted an EC key ({_CURVE_NAMES}).")
    _check_curve(public.curve.name, name)
    checked: EllipticCurvePublicKey = public
    return checked


def load_private_key(key: KeySource, passphrase: bytes | None = None) -> EllipticCurvePrivateKey:
    """A private key for ``sign_bundle``.

    Raises:
        UsageError: it is no private EC key on a curve of the format, or the passphrase is missing or wrong.
    """
    raw, name = _read_key(key)
    if b"PUBLIC KEY" in raw:
        raise UsageError(f"{name} is a public key; a private one signs.", hint="Give NAME.key, not NAME.pub.")
    serialization = import_extra("cryptography.hazmat.primitives.serialization", "sign")
    ec = import_extra("cryptography.hazmat.primitives.asymmetric.ec", "sign")
    try:
        private = serialization.load_pem_private_key(raw, passphrase)
    except Exception as error:  # ValueError, TypeError, UnsupportedAlgorithm
        raise UsageError(f"{name} cannot be used as a private key: {error}.") from error
    if not isinstance(private, ec.EllipticCurvePrivateKey):
        raise UsageError(f"{name} is of type {type(private).__name__}, wanted an EC key ({_CURVE_NAMES}).")
    _check_curve(private.curve.name, name)
    checked: EllipticCurvePrivateKey = private
    return checked


def is_encrypted(key: KeySource) -> bool:
    """Whether a private key needs a passphrase."""
    raw, _ = _read_key(key)
    return b"ENCRYPTED" in raw


def _read_key(key: KeySource) -> tuple[bytes, str]:
    """The PEM, and what to call it."""
    if isinstance(key, bytes):
        return key, "the key"
    if isinstance(key, str) and key.lstrip().startswith("-----BEGIN"):
        raise UsageError("A key in text was given where a path is wanted.", hint="Give the PEM as bytes.")
    try:
        path = Path(key)
        with path.open("rb") as file:
            return file.read(_MAX_KEY_BYTES), os.fspath(path)
    except TypeError as error:
        raise UsageError(f"A key must be a path or PEM bytes, got {type(key).__name__}.") from error
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        said = error.strerror if isinstance(error, OSError) else error
        raise UsageError(
            f"The key {str(key)!r} cannot be read: {said}.", hint="Check the path.", path=path
        ) from error


def _check_curve(curve: str, name: str) -> None:
    if curve not in HASH_OF_CURVE:
        raise UsageError(f"{name} lies on the curve {curve}; taken are {_CURVE_NAMES}.")


def check_private_key(key: object) -> None:
    """Raise UsageError where ``key`` is no private EC key on a curve of the format."""
    ec = import_extra("cryptography.hazmat.primitives.asymmetric.ec", "sign")
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise UsageError(
            f"A bundle is signed with a private EC key, got {type(key).__name__}.",
            hint="load_private_key reads one.",
        )
    _check_curve(key.curve.name, "The key")
