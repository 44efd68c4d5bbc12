"""Signatures over bundles, in the OpenSSF Model Signing format, version 1.0, with keys: no service, no network.

``model.sig`` is a sigstore bundle (JSON) around a DSSE envelope, whose payload is an in-toto statement with the sha256
of every file. The ``model-signing`` package verifies what is made here, and the other way round. Sources: the
OpenSSF Model Signing specification 1.0; DSSE 1.0.2 (pre-authentication encoding); in-toto Attestation Framework,
Statement v1.

What is stricter here: exactly one signature; the hash follows from the trusted key, never from the file; the list of
ignored paths that a statement may hold excuses nothing; certificates and transparency logs are not looked at.

This module knows bytes and digests, and no folder.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from edgekiln.runtime.bundles.keys import HASH_OF_CURVE, fingerprint
from edgekiln.runtime.bundles.manifest import MAX_SIGNATURE_BYTES, SIGNATURE_NAME
from edgekiln.runtime.errors import SignatureError
from edgekiln.runtime.extras import import_extra

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import (
        ECDSA,
        EllipticCurvePrivateKey,
        EllipticCurvePublicKey,
    )

__all__ = ["SignedContent", "make_signature", "verify_signature"]

_MEDIA_TYPE = "application/vnd.dev.sigstore.bundle.v0.3+json"
_PAYLOAD_TYPE = "application/vnd.in-toto+json"
_STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
_PREDICATE_TYPE = "https://model_signing/signature/v1.0"
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
    chosen = getattr(hashes, HASH_OF_CURVE[curve])()
    algorithm: ECDSA = ec.ECDSA(chosen, deterministic_signing=True) if deterministic else ec.ECDSA(chosen)
    return algorithm


def _sign(data: bytes, key: EllipticCurvePrivateKey) -> bytes:
    exceptions = import_extra("cryptography.exceptions", "sign")
    try:
        return key.sign(data, _algorithm(key.curve.name, deterministic=True))
    except exceptions.UnsupportedAlgorithm:  # built against OpenSSL older than 3.2
        return key.sign(data, _algorithm(key.curve.name))


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
