"""Signatures over bundles, in the OpenSSF Model Signing format, version 1.0, with keys: no service, no network.

``model.sig`` is a sigstore bundle (JSON) around a DSSE envelope, whose payload is an in-toto statement with the sha256
of every file. The ``model-signing`` package verifies what is made here, and the other way round. Sources: the
OpenSSF Model Signing specification 1.0; DSSE 1.0.2 (pre-authentication encoding); in-toto Attestation Framework,
Statement v1.

What is stricter here: exactly one signature; the hash follows from the trusted key, never from the file; the list of
ignored paths that a statement may hold excuses nothing; certificates and transparency logs are not looked at.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

from edgekiln.runtime.beside import ENDING, place_beside, remove
from edgekiln.runtime.bundle import MANIFEST_NAME, MAX_SIGNATURE_BYTES, SIGNATURE_NAME, open_bundle
from edgekiln.runtime.errors import ResourceError, SignatureError, UsageError
from edgekiln.runtime.extras import import_extra

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import (
        ECDSA,
        EllipticCurvePrivateKey,
        EllipticCurvePublicKey,
    )

__all__ = [
    "KeySource",
    "SignedContent",
    "fingerprint",
    "is_encrypted",
    "load_private_key",
    "load_public_keys",
    "make_signature",
    "sign_bundle",
    "verify_signature",
    "write_key_pair",
]

KeySource: TypeAlias = str | os.PathLike[str] | bytes
"""A PEM file's path, or the PEM itself as bytes."""

_MEDIA_TYPE = "application/vnd.dev.sigstore.bundle.v0.3+json"
_PAYLOAD_TYPE = "application/vnd.in-toto+json"
_STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
_PREDICATE_TYPE = "https://model_signing/signature/v1.0"
_CURVES = {"secp256r1": "SHA256", "secp384r1": "SHA384", "secp521r1": "SHA512"}
"""The curves of the format, and the one hash that goes with each."""
_CURVE_NAMES = "P-256, P-384, P-521"
_MAX_KEY_BYTES = 2**16
_HEX = re.compile(r"[0-9a-f]{64}")
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class SignedContent:
    """What a trusted key signed.

    Attributes:
        fingerprint: of the key.
        digests: sha256 as hex, by file name.
    """

    path: Path
    fingerprint: str
    digests: Mapping[str, str] = field(repr=False)

    def check(self, name: str, digest: str) -> None:
        """Raise SignatureError where the signature is not over this file."""
        if self.digests.get(name) == digest:
            return
        problem = "is not what was signed" if name in self.digests else "is not covered by the signature"
        raise SignatureError(
            f"{self.path.with_name(name)} {problem}.",
            hint="Take a fresh copy of the bundle from who signed it.",
            path=self.path.with_name(name),
        )


# Keys


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
    try:
        stem = Path(stem)
    except TypeError as error:
        raise UsageError(f"{stem!r} is no path.") from error
    if not stem.name:
        raise UsageError(
            f"{str(stem)!r} has no name to put .key and .pub behind.", hint="Give NAME, or FOLDER/NAME."
        )
    ec = import_extra("cryptography.hazmat.primitives.asymmetric.ec", "sign")
    serialization = import_extra("cryptography.hazmat.primitives.serialization", "sign")
    key = ec.generate_private_key(ec.SECP256R1())
    protection = (
        serialization.NoEncryption()
        if passphrase is None
        else serialization.BestAvailableEncryption(passphrase)
    )
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, protection
    )  # fmt: skip
    paths = stem.with_name(f"{stem.name}.key"), stem.with_name(f"{stem.name}.pub")
    for path in paths:
        if os.path.lexists(path):  # False, too, for a name that cannot be: creating it tells
            raise UsageError(
                f"{path} exists, and keys are not replaced.", hint="Take another name.", path=path
            )
    _create(paths[0], private, 0o600)
    try:
        _create(paths[1], _public_pem(key.public_key()), 0o644)
    except BaseException:  # half a pair would be in the way of the next attempt
        paths[0].unlink(missing_ok=True)
        raise
    return paths


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
    if curve not in _CURVES:
        raise UsageError(f"{name} lies on the curve {curve}; taken are {_CURVE_NAMES}.")


# Signing


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
    _check_key(key)
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


def _check_key(key: object) -> None:
    ec = import_extra("cryptography.hazmat.primitives.asymmetric.ec", "sign")
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise UsageError(
            f"A bundle is signed with a private EC key, got {type(key).__name__}.",
            hint="load_private_key reads one.",
        )
    _check_curve(key.curve.name, "The key")


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


def make_signature(name: str, digests: Mapping[str, str], key: EllipticCurvePrivateKey) -> bytes:
    """The signature file over files with these sha256.

    The statement's bytes follow from name and digests alone. The signature's follow too where cryptography can sign
    deterministically (RFC 6979; its wheels can), else they differ each time and verify all the same.
    """
    payload = _make_statement(name, digests)
    signature = _sign(_encode(payload), key)
    document = {
        "mediaType": _MEDIA_TYPE,
        "verificationMaterial": {
            "publicKey": {"hint": fingerprint(key.public_key())},
            "tlogEntries": [],
        },
        "dsseEnvelope": {
            "payload": base64.b64encode(payload).decode(),
            "payloadType": _PAYLOAD_TYPE,
            "signatures": [{"keyid": "", "sig": base64.b64encode(signature).decode()}],
        },
    }
    return (json.dumps(document, sort_keys=True, indent=2) + "\n").encode()


def _make_statement(name: str, digests: Mapping[str, str]) -> bytes:
    resources = [{"name": n, "algorithm": "sha256", "digest": digests[n]} for n in sorted(digests)]
    statement = {
        "_type": _STATEMENT_TYPE,
        "subject": [{"name": name, "digest": {"sha256": _root_digest(resources)}}],
        "predicateType": _PREDICATE_TYPE,
        "predicate": {
            "serialization": {
                "method": "files",
                "hash_type": "sha256",
                "allow_symlinks": False,
                "ignore_paths": [SIGNATURE_NAME],
            },
            "resources": resources,
        },
    }
    return json.dumps(statement, sort_keys=True, separators=(",", ":")).encode()


def _root_digest(resources: Sequence[Mapping[str, str]]) -> str:
    """sha256 over all digests in their order: how the format names a whole model."""
    return hashlib.sha256(b"".join(bytes.fromhex(r["digest"]) for r in resources)).hexdigest()


def _encode(payload: bytes) -> bytes:
    """DSSE's pre-authentication encoding: what is signed, type included."""
    return b"DSSEv1 %d %s %d %s" % (len(_PAYLOAD_TYPE), _PAYLOAD_TYPE.encode(), len(payload), payload)


def _algorithm(curve: str, *, deterministic: bool = False) -> ECDSA:
    ec = import_extra("cryptography.hazmat.primitives.asymmetric.ec", "sign")
    hashes = import_extra("cryptography.hazmat.primitives.hashes", "sign")
    chosen = getattr(hashes, _CURVES[curve])()
    algorithm: ECDSA = ec.ECDSA(chosen, deterministic_signing=True) if deterministic else ec.ECDSA(chosen)
    return algorithm


def _sign(data: bytes, key: EllipticCurvePrivateKey) -> bytes:
    exceptions = import_extra("cryptography.exceptions", "sign")
    try:
        return key.sign(data, _algorithm(key.curve.name, deterministic=True))
    except exceptions.UnsupportedAlgorithm:  # built against OpenSSL older than 3.2
        return key.sign(data, _algorithm(key.curve.name))


# Verifying


def verify_signature(raw: bytes, keys: Mapping[str, EllipticCurvePublicKey], path: Path) -> SignedContent:
    """What the signature file ``raw`` covers, once one of ``keys`` (from ``load_public_keys``) has verified it.

    Raises:
        SignatureError: it is none, is not of these keys, or does not verify.
    """
    try:
        return _verify(raw, keys, path)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise SignatureError(
            f"{path} is not a signature that edgekiln reads: {type(error).__name__}: {error}.",
            hint="It reads the OpenSSF Model Signing format 1.0, made with a key.",
            path=path,
        ) from error


def _verify(raw: bytes, keys: Mapping[str, EllipticCurvePublicKey], path: Path) -> SignedContent:
    if len(raw) > MAX_SIGNATURE_BYTES:
        raise ValueError(f"it has over {MAX_SIGNATURE_BYTES} bytes")
    document = _parse(raw)
    _expect(document, "mediaType", _MEDIA_TYPE)
    signer = _get(_get(_get(document, "verificationMaterial", dict), "publicKey", dict), "hint", str)
    key = keys.get(signer)
    if key is None:
        raise SignatureError(
            f"{path} names a key that is not trusted: {signer[:16]!r}; trusted: "
            f"{', '.join(repr(known[:16]) for known in sorted(keys))}.",
            hint="Is this the bundle, and the public key, that you mean?",
            path=path,
        )
    payload = _authenticate(_get(document, "dsseEnvelope", dict), key, path)
    return SignedContent(path, signer, _read_statement(_parse(payload)))


def _authenticate(envelope: Mapping[str, Any], key: EllipticCurvePublicKey, path: Path) -> bytes:
    """The payload of the envelope, once the key has verified it."""
    exceptions = import_extra("cryptography.exceptions", "sign")
    _expect(envelope, "payloadType", _PAYLOAD_TYPE)
    signatures = _get(envelope, "signatures", list)
    if len(signatures) != 1 or not isinstance(signatures[0], dict):
        raise ValueError(f"it holds {len(signatures)} signatures, wanted one")
    payload = base64.b64decode(_get(envelope, "payload", str), validate=True)
    signature = base64.b64decode(_get(signatures[0], "sig", str), validate=True)
    try:
        key.verify(signature, _encode(payload), _algorithm(key.curve.name))
    except exceptions.InvalidSignature as error:
        raise SignatureError(
            f"{path} does not verify: it was altered, or made with another key than it names.",
            hint="Take a fresh copy of the bundle from who signed it.",
            path=path,
        ) from error
    return payload


def _read_statement(statement: Mapping[str, Any]) -> dict[str, str]:
    """sha256 by file name. The statement is authentic; this checks that it is one for a bundle."""
    _expect(statement, "_type", _STATEMENT_TYPE)
    _expect(statement, "predicateType", _PREDICATE_TYPE)
    predicate = _get(statement, "predicate", dict)
    serialization = _get(predicate, "serialization", dict)
    _expect(serialization, "method", "files")
    _expect(serialization, "hash_type", "sha256")
    resources = [_read_resource(resource) for resource in _get(predicate, "resources", list)]
    digests = {resource["name"]: resource["digest"] for resource in resources}
    if len(digests) != len(resources):
        raise ValueError("it names a file twice")
    subjects = _get(statement, "subject", list)
    if len(subjects) != 1 or not isinstance(subjects[0], dict):
        raise ValueError(f"it has {len(subjects)} subjects, wanted one")
    _expect(_get(subjects[0], "digest", dict), "sha256", _root_digest(resources))
    return digests


def _read_resource(resource: object) -> dict[str, str]:
    if not isinstance(resource, dict):
        raise TypeError("a resource is no object")
    _expect(resource, "algorithm", "sha256")
    name, digest = _get(resource, "name", str), _get(resource, "digest", str)
    if not _HEX.fullmatch(digest):
        raise ValueError(f"the digest of {name!r} is no sha256")
    return {"name": name, "digest": digest}


def _parse(raw: bytes) -> dict[str, Any]:
    """A JSON object in which no key stands twice: readers differ on which one counts."""
    document = json.loads(raw, object_pairs_hook=_unique_keys)
    if not isinstance(document, dict):
        raise TypeError("not a JSON object")
    return document


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    document = dict(pairs)
    if len(document) != len(pairs):
        raise ValueError("a key stands twice")
    return document


def _get(values: Mapping[str, Any], name: str, kind: type[_T]) -> _T:
    value = values[name]
    if not isinstance(value, kind):
        raise TypeError(f"{name} is of type {type(value).__name__}")
    return value


def _expect(values: Mapping[str, Any], name: str, wanted: str) -> None:
    if values.get(name) != wanted:
        raise ValueError(f"{name} is {values.get(name)!r}, wanted {wanted!r}")
