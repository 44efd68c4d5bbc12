"""Signatures: made and verified here and by the model-signing package, and refused before anything is parsed."""

import base64
import errno
import hashlib
import json
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import edgekiln.runtime.bundles.bundle as bundle_module
import edgekiln.runtime.serving.selecting as selecting_module
from edgekiln.pipeline.cli import cli
from edgekiln.runtime.bundles.archive_writer import write_zip
from edgekiln.runtime.bundles.bundle import open_bundle
from edgekiln.runtime.bundles.keys import (
    fingerprint,
    is_encrypted,
    load_private_key,
    load_public_keys,
    write_key_pair,
)
from edgekiln.runtime.bundles.manifest import MANIFEST_NAME, SIGNATURE_NAME, write_manifest
from edgekiln.runtime.bundles.signature import make_signature, verify_signature
from edgekiln.runtime.bundles.signing import sign_bundle
from edgekiln.runtime.errors import (
    BundleError,
    EdgekilnError,
    ExitCode,
    MissingExtraError,
    ResourceError,
    SignatureError,
    UsageError,
)
from edgekiln.runtime.serving.loading import load

PAYLOAD_TYPE = "application/vnd.in-toto+json"


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    """(private, public) paths."""
    return write_key_pair(tmp_path_factory.mktemp("keys") / "release")


@pytest.fixture(scope="module")
def foreign(tmp_path_factory):
    return write_key_pair(tmp_path_factory.mktemp("keys") / "foreign")


@pytest.fixture
def signed(bundle_folder, keys):
    sign_bundle(bundle_folder, load_private_key(keys[0]))
    return bundle_folder


@pytest.fixture
def refused(monkeypatch, keys):
    """Both doors refuse with exit code 4; the manifest is not parsed and no engine library sees a byte."""

    def check(path, message, *, kind=SignatureError, parsed=False, trusted=(keys[1],)):
        def fail(*args, **kwargs):
            pytest.fail("a bundle without a good signature was parsed")

        with monkeypatch.context() as patch:
            patch.setattr(selecting_module, "open_session", fail)
            if not parsed:
                patch.setattr(bundle_module, "parse_manifest", fail)
            for door in (open_bundle, load):
                with pytest.raises(EdgekilnError, match=message) as caught:
                    door(path, trusted_keys=trusted)
                assert type(caught.value) is kind
                assert caught.value.exit_code == ExitCode.UNTRUSTED == 4
                assert caught.value.path is not None

    return check


def pae(payload, kind=PAYLOAD_TYPE):
    return b"DSSEv1 %d %s %d %s" % (len(kind), kind.encode(), len(payload), payload)


def edit(folder, change):
    """Change the signature file as parsed."""
    path = folder / SIGNATURE_NAME
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


def sign_statement(folder, keys, change=lambda statement: None, payload=None, kind=PAYLOAD_TYPE):
    """Sign a changed statement with the right key: what a signer could sign by mistake, or another tool otherwise."""
    key = load_private_key(keys[0])
    document = json.loads((folder / SIGNATURE_NAME).read_text())
    statement = json.loads(base64.b64decode(document["dsseEnvelope"]["payload"]))
    change(statement)
    payload = json.dumps(statement).encode() if payload is None else payload
    signature = key.sign(pae(payload, kind), ec.ECDSA(serialization_hash(key)))
    document["dsseEnvelope"] = {
        "payload": base64.b64encode(payload).decode(),
        "payloadType": kind,
        "signatures": [{"sig": base64.b64encode(signature).decode()}],
    }
    (folder / SIGNATURE_NAME).write_text(json.dumps(document))


def serialization_hash(key):
    from cryptography.hazmat.primitives import hashes

    return {256: hashes.SHA256, 384: hashes.SHA384, 521: hashes.SHA512}[key.curve.key_size]()


def pem(private):
    return private.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def public_pem(private):
    return private.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )


# Signing and loading


def test_a_signed_bundle_loads_with_its_key(signed, keys, foreign):
    for trusted in ([keys[1]], [str(keys[1])], [keys[1].read_bytes()], [foreign[1], keys[1]]):
        bundle = open_bundle(signed, trusted_keys=trusted)
        assert bundle.signer == hashlib.sha256(keys[1].read_bytes()).hexdigest()
        with load(signed, trusted_keys=trusted) as classifier:
            assert classifier.variant.name == "int8"


def test_a_signature_that_nobody_asks_for_changes_nothing(signed, tmp_path):
    bundle = open_bundle(signed)
    assert bundle.signer is None
    assert SIGNATURE_NAME not in bundle.files
    (signed / SIGNATURE_NAME).write_bytes(b"garbage")
    assert open_bundle(signed).digest == bundle.digest


def test_it_covers_the_manifest_and_every_file(signed):
    document = json.loads((signed / SIGNATURE_NAME).read_text())
    statement = json.loads(base64.b64decode(document["dsseEnvelope"]["payload"]))
    assert {r["name"]: r["digest"] for r in statement["predicate"]["resources"]} == {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in signed.iterdir()
        if path.name != SIGNATURE_NAME
    }


def test_same_content_and_key_give_the_same_bytes(signed, keys, tmp_path):
    raw = (signed / SIGNATURE_NAME).read_bytes()
    moved = shutil.copytree(signed, tmp_path / "another-name")
    (moved / SIGNATURE_NAME).unlink()
    sign_bundle(moved, load_private_key(keys[0]))
    assert (moved / SIGNATURE_NAME).read_bytes() == raw
    digests = {"b": "1" * 64, "a": "2" * 64}
    key = load_private_key(keys[0])
    assert make_signature("n", digests, key) == make_signature("n", dict(sorted(digests.items())), key)


def test_a_signing_that_was_killed_is_repaired_by_the_next(bundle_folder, keys):
    (bundle_folder / f".{SIGNATURE_NAME}.0123abcd.edgekiln-partial").write_bytes(b"half of it")
    with pytest.raises(BundleError):
        open_bundle(bundle_folder)
    sign_bundle(bundle_folder, load_private_key(keys[0]))
    assert open_bundle(bundle_folder, trusted_keys=[keys[1]]).signer
    assert not [p for p in bundle_folder.parent.iterdir() if SIGNATURE_NAME in p.name], (
        "nothing lies beside it"
    )


@pytest.mark.parametrize(
    "curve", [ec.SECP256R1(), ec.SECP384R1(), ec.SECP521R1()], ids=lambda curve: curve.name
)
def test_every_curve_of_the_format_is_taken(bundle_folder, curve):
    key = ec.generate_private_key(curve)
    used = sign_bundle(bundle_folder, load_private_key(pem(key)))
    assert (
        open_bundle(bundle_folder, trusted_keys=[public_pem(key)]).signer
        == used
        == fingerprint(key.public_key())
    )


def test_signing_again_with_another_key_must_be_asked_for(signed, keys, foreign):
    sign_bundle(signed, load_private_key(keys[0]))  # the same signature once more
    with pytest.raises(UsageError, match="has a signature already"):
        sign_bundle(signed, load_private_key(foreign[0]))
    open_bundle(signed, trusted_keys=[keys[1]])
    sign_bundle(signed, load_private_key(foreign[0]), replace=True)
    open_bundle(signed, trusted_keys=[foreign[1]])


def test_an_altered_bundle_is_not_signed(bundle_folder, keys):
    (bundle_folder / "report.json").write_text("{ }")
    with pytest.raises(BundleError, match=r"report\.json was changed"):
        sign_bundle(bundle_folder, load_private_key(keys[0]))
    assert not (bundle_folder / SIGNATURE_NAME).exists()


def test_a_signature_travels_in_an_archive(signed, keys, foreign, refused, tmp_path):
    path = tmp_path / "b.zip"
    write_zip(open_bundle(signed), path)
    with load(path, trusted_keys=[keys[1]]) as classifier:
        assert classifier.variant.name == "int8"
    refused(path, "names a key that is not trusted", trusted=[foreign[1]])
    with pytest.raises(UsageError, match="is a file; a folder is signed"):
        sign_bundle(path, load_private_key(keys[0]))


# Refusals


def test_an_unsigned_bundle_is_refused(bundle_folder, refused):
    refused(bundle_folder, r"is not signed: it has no model\.sig")


def test_a_foreign_signature_is_refused(signed, refused, foreign):
    refused(signed, "names a key that is not trusted", trusted=[foreign[1]])


def test_a_foreign_signature_that_names_the_trusted_key_is_refused(bundle_folder, refused, keys, foreign):
    sign_bundle(bundle_folder, load_private_key(foreign[0]))
    [trusted] = load_public_keys([keys[1]])
    edit(bundle_folder, lambda d: d["verificationMaterial"]["publicKey"].update(hint=trusted))
    refused(bundle_folder, "does not verify")


def test_an_altered_manifest_is_refused_unparsed(signed, refused):
    (signed / MANIFEST_NAME).write_bytes((signed / MANIFEST_NAME).read_bytes() + b" ")
    refused(signed, r"manifest\.json is not what was signed")


def test_a_model_swapped_with_its_manifest_is_refused(signed, refused):
    document = json.loads((signed / MANIFEST_NAME).read_text())
    shutil.copy(signed / "fp32.onnx", signed / "int8.onnx")
    write_manifest(signed, document)
    open_bundle(signed)  # whole, for who asks for no signature
    refused(signed, r"manifest\.json is not what was signed")


def test_an_altered_model_is_refused(signed, refused):
    data = bytearray((signed / "int8.onnx").read_bytes())
    data[-1] ^= 1
    (signed / "int8.onnx").write_bytes(data)
    refused(signed, r"int8\.onnx was changed", kind=BundleError, parsed=True)


def test_an_extra_file_is_refused(signed, refused):
    (signed / "more").write_bytes(b"")
    refused(signed, "is not listed in the manifest", kind=BundleError, parsed=True)


@pytest.mark.parametrize("kind", ["link", "folder"])
def test_a_signature_that_is_no_file_is_refused_by_all(signed, refused, tmp_path, kind):
    path = signed / SIGNATURE_NAME
    path.rename(tmp_path / "kept.sig")
    if kind == "link":
        path.symlink_to(tmp_path / "kept.sig")
    else:
        path.mkdir()
    with pytest.raises(BundleError, match=r"model\.sig (is a link|is not a regular file)"):
        open_bundle(signed)
    refused(signed, r"model\.sig (is a link|is not a regular file)", kind=BundleError)


def test_a_manifest_does_not_list_its_signature(signed, keys, refused):
    document = json.loads((signed / MANIFEST_NAME).read_text())
    document["files"][SIGNATURE_NAME] = document["files"]["report.json"]
    (signed / MANIFEST_NAME).write_text(json.dumps(document))
    with pytest.raises(BundleError, match=r"lists model\.sig, which no manifest lists"):
        open_bundle(signed)


def test_a_file_that_the_signature_leaves_out_is_refused(signed, keys, refused):
    def leave_out(statement):
        statement["predicate"]["serialization"]["ignore_paths"] = ["int8.onnx"]
        resources = statement["predicate"]["resources"]
        resources[:] = [r for r in resources if r["name"] != "int8.onnx"]
        root = hashlib.sha256(b"".join(bytes.fromhex(r["digest"]) for r in resources)).hexdigest()
        statement["subject"][0]["digest"]["sha256"] = root

    sign_statement(signed, keys, leave_out)
    refused(signed, r"int8\.onnx is not covered by the signature", parsed=True)


def test_a_file_that_only_the_signature_covers_is_refused(signed, keys, refused):
    def add(statement):
        resources = statement["predicate"]["resources"]
        resources.append({"name": "z", "algorithm": "sha256", "digest": "0" * 64})
        root = hashlib.sha256(b"".join(bytes.fromhex(r["digest"]) for r in resources)).hexdigest()
        statement["subject"][0]["digest"]["sha256"] = root

    sign_statement(signed, keys, add)
    refused(signed, "covers z, which its manifest does not list", parsed=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.update(_type="https://in-toto.io/Statement/v0.1"), "_type is"),
        (lambda s: s.update(predicateType="https://slsa.dev/provenance/v1"), "predicateType is"),
        (lambda s: s["predicate"]["serialization"].update(method="shards"), "method is 'shards'"),
        (lambda s: s["predicate"]["serialization"].update(hash_type="blake2b"), "hash_type is 'blake2b'"),
        (lambda s: s["predicate"]["resources"][0].update(algorithm="md5"), "algorithm is 'md5'"),
        (lambda s: s["predicate"]["resources"][0].update(digest="0" * 63), "is no sha256"),
        (lambda s: s["predicate"]["resources"][0].update(name="int8.onnx"), "names a file twice"),
        (lambda s: s["predicate"]["resources"].insert(0, None), "a resource is no object"),
        (lambda s: s["subject"][0]["digest"].update(sha256="0" * 64), "sha256 is"),
        (lambda s: s["subject"].append(s["subject"][0]), "2 subjects"),
        (lambda s: s.pop("predicate"), "KeyError"),
    ],
)
def test_a_signed_statement_of_another_kind_is_refused(signed, keys, refused, change, message):
    sign_statement(signed, keys, change)
    refused(signed, f"is not a signature that edgekiln reads: .*{message}")


def test_a_payload_of_another_type_is_refused_although_signed(signed, keys, refused):
    sign_statement(signed, keys, kind="text/plain")
    refused(signed, "payloadType is 'text/plain'")
    sign_statement(signed, keys, payload=b"[]")
    refused(signed, "not a JSON object")
    sign_statement(signed, keys, payload=b'{"_type": 1, "_type": 2}')
    refused(signed, "a key stands twice")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.update(mediaType="application/json"), "mediaType is"),
        (lambda d: d["verificationMaterial"].pop("publicKey"), "KeyError: 'publicKey'"),
        (lambda d: d["verificationMaterial"]["publicKey"].update(hint=None), "hint is of type NoneType"),
        (
            lambda d: d["verificationMaterial"]["publicKey"].update(hint=""),
            "names a key that is not trusted: ''",
        ),
        (lambda d: d.pop("dsseEnvelope"), "KeyError: 'dsseEnvelope'"),
        (lambda d: d["dsseEnvelope"]["signatures"].clear(), "0 signatures, wanted one"),
        (lambda d: d["dsseEnvelope"]["signatures"].append({"sig": ""}), "2 signatures, wanted one"),
        (lambda d: d["dsseEnvelope"]["signatures"].__setitem__(0, None), "1 signatures, wanted one"),
        (lambda d: d["dsseEnvelope"]["signatures"][0].update(sig="AAAA"), "does not verify"),
        (lambda d: d["dsseEnvelope"]["signatures"][0].update(sig=""), "does not verify"),
        (lambda d: d["dsseEnvelope"]["signatures"][0].update(sig="!"), "Error"),
        (lambda d: d["dsseEnvelope"].update(payload=d["dsseEnvelope"]["payload"][:-4]), "does not verify"),
        (lambda d: d["dsseEnvelope"].update(payload="e30 ="), "Error"),
    ],
)
def test_a_changed_signature_file_is_refused(signed, refused, change, message):
    edit(signed, change)
    refused(signed, message)


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"null",
        b"[]",
        b"\xff",
        b"[" * 100_000,
        b'{"mediaType": 1, "mediaType": 2}',
        b" " * (4 * 2**20 + 1),
    ],
    ids=lambda raw: repr(raw[:20]),
)
def test_a_signature_that_is_none_is_refused(signed, refused, raw):
    (signed / SIGNATURE_NAME).write_bytes(raw)
    refused(signed, "is not a signature that edgekiln reads")


# Keys


def test_a_private_key_is_for_its_owner_only(tmp_path):
    private, public = write_key_pair(tmp_path / "release")
    assert (private.name, public.name) == ("release.key", "release.pub")
    assert stat.S_IMODE(private.stat().st_mode) == 0o600
    assert private.read_bytes().startswith(b"-----BEGIN PRIVATE KEY-----")
    assert fingerprint(load_private_key(private).public_key()) in load_public_keys([public])


@pytest.mark.parametrize("ending", [".key", ".pub"])
def test_keys_are_never_replaced(tmp_path, ending):
    (tmp_path / f"release{ending}").write_text("kept")
    with pytest.raises(UsageError, match="exists, and keys are not replaced"):
        write_key_pair(tmp_path / "release")
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [(f"release{ending}", "kept")]


def test_a_key_is_not_written_through_a_link(tmp_path):
    (tmp_path / "release.key").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UsageError, match="exists"):
        write_key_pair(tmp_path / "release")
    with pytest.raises(UsageError, match="There is no folder"):
        write_key_pair(tmp_path / "none" / "release")
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="There is no folder"):
        write_key_pair(tmp_path / "file" / "release")


@pytest.mark.parametrize("name", [".", "/", ""])
def test_a_key_needs_a_name(name):
    with pytest.raises(UsageError, match="has no name to put"):
        write_key_pair(Path(name))


@pytest.mark.parametrize("passphrase", [b"", b"x" * 1024, "text"])
def test_a_passphrase_that_no_key_can_have_is_refused(tmp_path, passphrase):
    with pytest.raises(UsageError, match="A passphrase is 1 to 1023 bytes"):
        write_key_pair(tmp_path / "release", passphrase)


def test_an_interrupted_key_is_not_left_behind(tmp_path, monkeypatch):
    def interrupt(descriptor):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_key_pair(tmp_path / "release")
    assert list(tmp_path.iterdir()) == []


def test_a_private_key_is_in_no_message(signed, keys):
    with pytest.raises(UsageError, match="takes a list of keys, got bytes") as caught:
        load(signed, trusted_keys=keys[0].read_bytes())
    assert "PRIVATE" not in str(caught.value)


def test_a_name_that_no_file_can_have_is_told(tmp_path):
    with pytest.raises(ResourceError, match=r"cannot be written: .*too long"):
        write_key_pair(tmp_path / ("k" * 300))


def test_only_a_private_key_of_the_format_signs(bundle_folder, keys):
    for key in (None, "release.key", rsa.generate_private_key(65537, 2048), load_public_keys([keys[1]])):
        with pytest.raises(UsageError, match="is signed with a private EC key, got"):
            sign_bundle(bundle_folder, key)
    with pytest.raises(UsageError, match="lies on the curve secp256k1"):
        sign_bundle(bundle_folder, ec.generate_private_key(ec.SECP256K1()))
    with pytest.raises(UsageError, match="is a public key; a private one signs"):
        load_private_key(keys[1])


@pytest.mark.parametrize("path", ["x" * 300, "a\0", 5])
def test_what_is_no_path_is_not_signed(keys, path):
    with pytest.raises(UsageError, match=r"is no path|There is no folder"):
        sign_bundle(path, load_private_key(keys[0]))


def test_half_a_pair_is_not_left_behind(tmp_path, monkeypatch):
    unpatched = os.fsync
    calls = []

    def fail_the_second_time(descriptor):
        calls.append(descriptor)
        if len(calls) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        unpatched(descriptor)

    monkeypatch.setattr(os, "fsync", fail_the_second_time)
    with pytest.raises(ResourceError, match=r"release\.pub cannot be written: No space left on device"):
        write_key_pair(tmp_path / "release")
    assert list(tmp_path.iterdir()) == []
    write_key_pair(tmp_path / "release")
    assert not (tmp_path / "elsewhere").exists()


def test_an_encrypted_key_needs_its_passphrase(tmp_path, bundle_folder):
    private, public = write_key_pair(tmp_path / "release", b"secret")
    assert private.read_bytes().startswith(b"-----BEGIN ENCRYPTED PRIVATE KEY-----")
    for wrong in (None, b"wrong"):
        with pytest.raises(UsageError, match="cannot be used as a private key"):
            load_private_key(private, wrong)
    sign_bundle(bundle_folder, load_private_key(private, b"secret"))
    open_bundle(bundle_folder, trusted_keys=[public])


def test_only_public_ec_keys_on_the_formats_curves_are_trusted(signed, keys, tmp_path):
    wrong = {
        rsa.generate_private_key(65537, 2048): "is of type RSAPublicKey, wanted an EC key",
        ed25519.Ed25519PrivateKey.generate(): "is of type Ed25519PublicKey, wanted an EC key",
        ec.generate_private_key(ec.SECP256K1()): "lies on the curve secp256k1",
    }
    for key, message in wrong.items():
        with pytest.raises(UsageError, match=message):
            open_bundle(signed, trusted_keys=[keys[1], public_pem(key)])
        with pytest.raises(UsageError, match=message.replace("Public", "Private")):
            load_private_key(pem(key))
    with pytest.raises(UsageError, match="is a private key; a public one is wanted"):
        open_bundle(signed, trusted_keys=[keys[0]])
    with pytest.raises(UsageError, match="is no public key in PEM"):
        open_bundle(signed, trusted_keys=[b"garbage"])
    with pytest.raises(UsageError, match="cannot be read: No such file"):
        open_bundle(signed, trusted_keys=[tmp_path / "none.pub"])
    with pytest.raises(UsageError, match="Give the PEM as bytes"):
        open_bundle(signed, trusted_keys=[keys[1].read_text()])


def test_no_keys_are_not_the_same_as_none_asked_for(signed, keys):
    with pytest.raises(UsageError, match="trusted_keys is empty: no bundle could be trusted"):
        load(signed, trusted_keys=[])
    for one in (keys[1], str(keys[1]), keys[1].read_bytes()):
        with pytest.raises(UsageError, match="takes a list of keys, got "):
            load(signed, trusted_keys=one)


def test_without_cryptography_nothing_is_trusted(signed, keys, monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == "cryptography"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "cryptography", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'edgekiln\[sign\]'"):
        load(signed, trusted_keys=[keys[1]])
    open_bundle(signed)


# The other implementation


def verify_with_model_signing(folder, public):
    import model_signing

    config = model_signing.verifying.Config().use_elliptic_key_verifier(public_key=public)
    config.verify(folder, folder / SIGNATURE_NAME)


def test_model_signing_verifies_what_is_signed_here(signed, keys, foreign):
    verify_with_model_signing(signed, keys[1])
    with pytest.raises(ValueError, match="Key mismatch"):
        verify_with_model_signing(signed, foreign[1])
    (signed / "report.json").write_text("{ }")
    with pytest.raises(ValueError, match=r"Hash mismatch for 'report\.json'"):
        verify_with_model_signing(signed, keys[1])


@pytest.mark.parametrize("place", ["inside", "outside"])
def test_what_model_signing_signs_is_verified_here(bundle_folder, keys, refused, tmp_path, place):
    import model_signing

    path = (bundle_folder if place == "inside" else tmp_path) / SIGNATURE_NAME
    hashing = model_signing.hashing.Config().set_ignored_paths(paths=[SIGNATURE_NAME])
    config = model_signing.signing.Config().use_elliptic_key_signer(private_key=keys[0])
    config.set_hashing_config(hashing).sign(bundle_folder, path)
    if place == "outside":
        path.rename(bundle_folder / SIGNATURE_NAME)
    [used] = load_public_keys([keys[1]])
    assert open_bundle(bundle_folder, trusted_keys=[keys[1]]).signer == used
    (bundle_folder / MANIFEST_NAME).write_bytes(b"{}")
    refused(bundle_folder, r"manifest\.json is not what was signed")


def test_their_command_line_verifies_too(signed, keys):
    command = [sys.executable, "-m", "model_signing", "verify", "key", str(signed), "--signature"]
    command += [str(signed / SIGNATURE_NAME), "--public_key", str(keys[1])]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "succeeded" in done.stdout + done.stderr


# The command line


def invoke(*arguments, env=None):
    return CliRunner().invoke(cli, [str(a) for a in arguments], env=env, standalone_mode=False)


def test_from_keygen_to_a_verified_archive(bundle_folder, tmp_path):
    made = json.loads(invoke("keygen", "--out", tmp_path / "k", "--json").stdout)
    assert made["encrypted"] is False
    done = json.loads(invoke("sign", bundle_folder, "--key", tmp_path / "k.key", "--json").stdout)
    assert done["fingerprint"] == made["fingerprint"]
    out = tmp_path / "b.zip"
    assert (
        json.loads(invoke("archive", bundle_folder, "--out", out, "--json").stdout)["bytes"]
        == out.stat().st_size
    )
    for path in (bundle_folder, out):
        values = json.loads(invoke("verify", path, "--pub", tmp_path / "k.pub", "--json").stdout)
        assert (values["fingerprint"], values["files"]) == (made["fingerprint"], 3)
        assert (
            f"signed by key {made['fingerprint']}"
            in invoke("verify", path, "--pub", tmp_path / "k.pub").stdout
        )
        shown = json.loads(invoke("inspect", path, "--json").stdout)
        assert shown["signature"] == "there, not verified"
        shown = json.loads(invoke("inspect", path, "--trusted-key", tmp_path / "k.pub", "--json").stdout)
        assert shown["signature"] == f"verified, key {made['fingerprint']}"


def test_predict_asks_for_the_signature(signed, keys, foreign, tmp_path):
    from PIL import Image

    Image.new("RGB", (8, 4), (100, 0, 0)).save(tmp_path / "red.png")
    done = invoke("predict", signed, tmp_path / "red.png", "--trusted-key", keys[1])
    assert done.exception is None
    assert "red" in done.stdout
    done = invoke("predict", signed, tmp_path / "red.png", "--trusted-key", foreign[1])
    assert type(done.exception) is SignatureError


def test_a_passphrase_comes_from_the_environment_or_a_person(bundle_folder, tmp_path, monkeypatch):
    odd = {"EDGEKILN_KEY_PASSPHRASE": "not utf-8: \udcff"}
    assert invoke("keygen", "--out", tmp_path / "odd", env=odd).exception is None
    assert is_encrypted(tmp_path / "odd.key")
    assert load_private_key(tmp_path / "odd.key", b"not utf-8: \xff")
    env = {"EDGEKILN_KEY_PASSPHRASE": "secret"}
    done = invoke("keygen", "--out", tmp_path / "k", env=env)
    assert "(encrypted)" in done.stdout
    assert "secret" not in done.output
    done = invoke("sign", bundle_folder, "--key", tmp_path / "k.key")
    assert type(done.exception) is UsageError
    assert "is encrypted. Give its passphrase in EDGEKILN_KEY_PASSPHRASE" in str(done.exception)
    assert invoke("sign", bundle_folder, "--key", tmp_path / "k.key", env=env).exception is None
    asked = invoke("keygen", "--out", tmp_path / "p", "--passphrase")
    assert "There is no terminal to ask for a passphrase. Give it in EDGEKILN_KEY_PASSPHRASE" in str(
        asked.exception
    )
    monkeypatch.setattr("edgekiln.pipeline.cli.signing._can_ask", lambda: True)
    asked = CliRunner().invoke(
        cli, ["keygen", "--out", str(tmp_path / "p"), "--passphrase"], input="abc\nabc\n"
    )
    assert asked.exit_code == 0
    assert b"ENCRYPTED" in (tmp_path / "p.key").read_bytes()


def test_usage_errors_of_the_commands(bundle_folder, signed, keys, tmp_path):
    for arguments, message in (
        (("archive", bundle_folder, "--out", tmp_path / "b"), r"does not end in \.zip"),
        (("inspect", bundle_folder / "fp32.onnx", "--trusted-key", keys[1]), "only bundles are signed"),
        (("keygen", "--out", tmp_path / "none" / "k"), "There is no folder"),
        (("keygen", "--out", "."), "has no name"),
    ):
        error = invoke(*arguments).exception
        assert isinstance(error, UsageError)
        with pytest.raises(UsageError, match=message):
            raise error


# Mutations


@settings(
    max_examples=400,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.data())
def test_a_mutated_signature_says_the_same_or_is_refused(signed, keys, data):
    original = (signed / SIGNATURE_NAME).read_bytes()
    trusted = load_public_keys([keys[1]])
    raw = bytearray(original)
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, len(raw) - 1))
        match data.draw(st.sampled_from(["byte", "cut", "insert", "drop"])):
            case "byte":
                raw[place] = data.draw(st.integers(0, 255))
            case "cut":
                del raw[max(1, place) :]
            case "insert":
                raw[place:place] = data.draw(
                    st.sampled_from([b'"', b"{", b"]", b",", b"null", b"\\", b"A", b"="])
                )
            case "drop":
                del raw[max(1, place) : place + data.draw(st.integers(1, 30))]
    wanted = verify_signature(original, trusted, signed / SIGNATURE_NAME)
    try:
        found = verify_signature(bytes(raw), trusted, signed / SIGNATURE_NAME)
    except SignatureError:
        return
    assert found == wanted
