"""The bundle: opened only when every byte agrees, and the right variant of it loaded."""

import errno
import hashlib
import json
import os
import shutil
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from PIL import Image

import edgekiln.runtime as ek
import edgekiln.runtime.serving.selecting as selecting_module
from edgekiln.runtime.bundles.bundle import MAX_MANIFEST_BYTES, open_bundle
from edgekiln.runtime.bundles.manifest import MANIFEST_NAME, write_manifest
from edgekiln.runtime.bundles.source import hash_file
from edgekiln.runtime.errors import (
    BundleError,
    ContractError,
    EngineError,
    EnvironmentProblem,
    ExitCode,
    ResourceError,
    UntrustedError,
    UsageError,
)
from edgekiln.runtime.onnx_files.metadata import CONTRACT_DIGEST_KEY
from edgekiln.runtime.serving.loading import load

HAS_CUDA = "CUDAExecutionProvider" in onnxruntime.get_available_providers()
no_cuda = pytest.mark.skipif(HAS_CUDA, reason="this onnxruntime has CUDA")
RED = Image.new("RGB", (8, 4), (100, 0, 0))
FILES = ["fp32.onnx", "int8.onnx", "report.json"]


def scale_of(classifier):
    """Which engine runs: number i of a bundle multiplies the mean pixel by i + 1."""
    return classifier.predict(RED).logits[0] / 100


@pytest.fixture
def no_session(monkeypatch):
    def fail(*args, **kwargs):
        pytest.fail("an engine library was handed bytes of a bundle that does not agree with its manifest")

    monkeypatch.setattr(selecting_module, "open_session", fail)


@pytest.fixture
def refused(no_session):
    """Both doors refuse the folder with exit code 4 and name the file, before any engine sees a byte."""

    def check(folder, message, *, names, kind=BundleError):
        for door in (open_bundle, load):
            with pytest.raises(UntrustedError, match=message) as caught:
                door(folder)
            assert type(caught.value) is kind
            assert caught.value.exit_code == ExitCode.UNTRUSTED == 4
            assert str(names) in str(caught.value)
            assert caught.value.path is not None

    return check


def edit(folder, change):
    """Change the manifest as parsed; the listed files stay as they are."""
    path = folder / MANIFEST_NAME
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


# Reading and writing


def test_round_trip(bundle_folder, contract):
    bundle = open_bundle(bundle_folder)
    assert (bundle.name, bundle.path, bundle.contract) == ("colors", bundle_folder, contract)
    assert sorted(bundle.files) == FILES
    assert bundle.digest == hashlib.sha256((bundle_folder / MANIFEST_NAME).read_bytes()).hexdigest()
    for name in FILES:
        assert bundle.read(name) == (bundle_folder / name).read_bytes()
    variant = bundle.variant("int8")
    assert (variant.backend, variant.precision, variant.file) == ("onnxruntime-cpu", "int8", "int8.onnx")
    assert (variant.verdict, variant.deployable, variant.required) == ("pass", True, True)
    assert variant.reason == "why int8 got its verdict"
    assert variant.figures == {"accuracy": 0.5}
    assert [v.name for v in bundle.variants] == ["fp32", "int8"]


def test_a_path_may_be_a_string_and_the_folder_a_link(bundle_folder, tmp_path):
    (tmp_path / "latest").symlink_to(bundle_folder)
    assert open_bundle(str(tmp_path / "latest")).digest == open_bundle(bundle_folder).digest


def test_a_moved_bundle_is_the_same_bundle(bundle_folder, tmp_path):
    digest = open_bundle(bundle_folder).digest
    moved = Path(shutil.move(bundle_folder, tmp_path / "elsewhere"))
    assert open_bundle(moved).digest == digest


def test_same_content_gives_the_same_manifest_bytes(tmp_path, contract):
    digests, texts = [], []
    for name, order in (("one", ["a.bin", "b.bin"]), ("two", ["b.bin", "a.bin"])):
        folder = tmp_path / name
        folder.mkdir()
        for file in order:
            (folder / file).write_bytes(file.encode())
        content = {"name": "n", "contract": contract.to_dict(), "variants": []}
        digests.append(write_manifest(folder, content if name == "one" else dict(reversed(content.items()))))
        texts.append((folder / MANIFEST_NAME).read_bytes())
    assert texts[0] == texts[1]
    assert digests == [hashlib.sha256(texts[0]).hexdigest()] * 2
    assert (
        write_manifest(tmp_path / "one", content) == digests[0]
    )  # the old manifest is not listed in the new


def test_hash_file_is_sha256_and_size(tmp_path):
    path = tmp_path / "file"
    data = bytes(range(256)) * 8200  # over two chunks of one MiB
    path.write_bytes(data)
    assert hash_file(path) == (hashlib.sha256(data).hexdigest(), len(data))
    assert hash_file(path, limit=len(data)) == hash_file(path)
    assert hash_file(path, limit=10)[1] == 11  # one byte more shows that the file is too long


# Files that do not agree


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("where", ["first", "last"])
def test_a_changed_byte_in_any_file_is_refused(bundle_folder, refused, name, where):
    path = bundle_folder / name
    data = bytearray(path.read_bytes())
    data[0 if where == "first" else -1] ^= 1
    path.write_bytes(data)
    refused(bundle_folder, "was changed: sha256 .* the manifest says", names=path)


@pytest.mark.parametrize("name", FILES)
def test_a_longer_or_shorter_file_is_refused(bundle_folder, refused, name):
    path = bundle_folder / name
    data = path.read_bytes()
    for changed in (data + b"\0", data[:-1], b""):
        path.write_bytes(changed)
        refused(bundle_folder, "was changed", names=path)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_refused(bundle_folder, refused, name):
    (bundle_folder / name).unlink()
    refused(bundle_folder, "is missing from", names=name)


@pytest.mark.parametrize("name", ["extra.txt", ".hidden", "fp32.onnx.data", "Manifest.json"])
def test_an_extra_file_is_refused(bundle_folder, refused, name):
    (bundle_folder / name).write_bytes(b"")
    refused(bundle_folder, "is not listed in the manifest", names=bundle_folder / name)


def test_an_extra_folder_is_refused(bundle_folder, refused):
    (bundle_folder / "more").mkdir()
    refused(bundle_folder, "is not listed in the manifest", names=bundle_folder / "more")


@pytest.mark.parametrize("name", [*FILES, MANIFEST_NAME])
def test_a_link_instead_of_a_file_is_refused_even_to_the_same_bytes(bundle_folder, refused, tmp_path, name):
    path = Path(shutil.move(bundle_folder / name, tmp_path / "original"))
    (bundle_folder / name).symlink_to(path)
    refused(bundle_folder, "is a link; a bundle holds its files themselves", names=bundle_folder / name)


@pytest.mark.parametrize("name", [*FILES, MANIFEST_NAME])
def test_a_folder_instead_of_a_file_is_refused(bundle_folder, refused, name):
    (bundle_folder / name).unlink()
    (bundle_folder / name).mkdir()
    refused(bundle_folder, "is not a regular file", names=bundle_folder / name)


@pytest.mark.parametrize("name", [*FILES, MANIFEST_NAME])
def test_a_pipe_instead_of_a_file_is_refused_without_waiting(bundle_folder, refused, name):
    (bundle_folder / name).unlink()
    os.mkfifo(bundle_folder / name)
    caught = []

    def open_it():
        try:
            refused(bundle_folder, "is not a regular file", names=bundle_folder / name)
        except BaseException as error:
            caught.append(error)

    thread = threading.Thread(target=open_it, daemon=True)
    thread.start()
    thread.join(timeout=10)  # a pipe without a writer would be waited for without end
    assert not thread.is_alive()
    assert not caught, caught


def test_no_descriptor_is_leaked_by_refusals(bundle_folder):
    (bundle_folder / "fp32.onnx").unlink()
    (bundle_folder / "fp32.onnx").mkdir()
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208 -- a count, not paths
    for _ in range(5):
        with pytest.raises(BundleError):
            open_bundle(bundle_folder)
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208 -- a count, not paths


def test_read_notices_a_change_after_opening(bundle_folder):
    bundle = open_bundle(bundle_folder)
    path = bundle_folder / "int8.onnx"
    original = path.read_bytes()
    for changed in (original[:-1] + bytes([original[-1] ^ 1]), original + b"more", original[:-1]):
        path.write_bytes(changed)
        with pytest.raises(BundleError, match=r"int8\.onnx was changed") as caught:
            bundle.read("int8.onnx")
        assert caught.value.exit_code == 4
    path.write_bytes(original)
    assert bundle.read("int8.onnx") == original
    path.unlink()
    with pytest.raises(BundleError, match=r"int8\.onnx cannot be read: No such file"):
        bundle.read("int8.onnx")


def test_an_engine_swapped_between_check_and_load_reaches_no_library(bundle_folder, no_session, monkeypatch):
    def open_then_swap(path, **options):
        bundle = open_bundle(path, **options)
        (bundle_folder / "int8.onnx").write_bytes((bundle_folder / "fp32.onnx").read_bytes())
        return bundle

    monkeypatch.setattr(selecting_module, "open_bundle", open_then_swap)
    with pytest.raises(BundleError, match=r"int8\.onnx was changed"):
        load(bundle_folder)


@pytest.mark.parametrize("name", ["other", MANIFEST_NAME, "../bundle/fp32.onnx", ""])
def test_read_gives_listed_files_only(bundle_folder, name):
    with pytest.raises(BundleError, match="is not listed in the manifest"):
        open_bundle(bundle_folder).read(name)


# Manifests that cannot be taken


def test_no_folder_and_no_manifest_are_usage_errors(tmp_path):
    with pytest.raises(UsageError, match="There is no folder") as caught:
        open_bundle(tmp_path / "none")
    assert caught.value.exit_code == ExitCode.USAGE
    with pytest.raises(UsageError, match=r"is no bundle: it has no manifest\.json"):
        open_bundle(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="file is a file, a bundle is a folder"):
        open_bundle(tmp_path / "file")


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"not json",
        b"\xff\xfe\x00",
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b"[]",
        b"null",
        b"3",
        b"{}",
        b'{"schema_version": "1.0"}',
        b'{"schema_version": "1.0", "files": []}',
        b'{"schema_version": "1.0", "files": {"fp32.onnx": null}}',
    ],
    ids=lambda raw: repr(raw[:20]) + str(len(raw)),
)
def test_a_manifest_that_is_no_manifest_is_refused(bundle_folder, refused, raw):
    (bundle_folder / MANIFEST_NAME).write_bytes(raw)
    refused(bundle_folder, "is not a valid manifest", names=bundle_folder / MANIFEST_NAME)


def test_a_huge_manifest_is_refused_unparsed(bundle_folder, refused):
    with (bundle_folder / MANIFEST_NAME).open("r+b") as file:
        file.truncate(MAX_MANIFEST_BYTES + 1)  # a hole: nothing is written
    refused(bundle_folder, f"has over {MAX_MANIFEST_BYTES} bytes", names=MANIFEST_NAME)


@pytest.mark.parametrize(
    "name",
    [
        "../x",
        "/etc/passwd",
        "a/b",
        "..",
        ".",
        "",
        ".hidden",
        "a b",
        "a\nb",
        "a\0b",
        "x" * 65,
        "ä",
        "a\\b",
        "-x",
    ],
)
def test_unsafe_file_names_are_refused(bundle_folder, refused, name):
    edit(bundle_folder, lambda d: d["files"].update({name: d["files"]["report.json"]}))
    refused(bundle_folder, "unsafe name", names=bundle_folder / MANIFEST_NAME)


def test_a_manifest_that_lists_itself_is_refused(bundle_folder, refused):
    edit(bundle_folder, lambda d: d["files"].update({MANIFEST_NAME: d["files"]["report.json"]}))
    refused(bundle_folder, "manifest.json", names=MANIFEST_NAME)


@pytest.mark.parametrize("digest", ["", "0" * 63, "0" * 65, "G" * 64, "A" * 64, "0" * 64 + "\n", 0, None])
def test_a_bad_sha256_is_refused(bundle_folder, refused, digest):
    edit(bundle_folder, lambda d: d["files"]["fp32.onnx"].update(sha256=digest))
    refused(bundle_folder, "is not a sha256", names=bundle_folder / MANIFEST_NAME)


@pytest.mark.parametrize("size", [None, "2", 2.5, -1, True, [], float("inf"), float("nan")], ids=str)
def test_a_bad_size_is_refused(bundle_folder, refused, size):
    edit(bundle_folder, lambda d: d["files"]["report.json"].update(size=size))
    refused(bundle_folder, "is not a valid manifest: .* is not a size", names=bundle_folder / MANIFEST_NAME)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"verdict": "passed"}, "variant 'fp32' has unknown verdict 'passed'"),
        ({"verdict": None}, "unknown verdict None"),
        ({"verdict": ["pass"]}, "unknown verdict"),
        ({"file": "other.onnx"}, "has file 'other.onnx', which is not listed"),
        ({"file": "../fp32.onnx"}, "which is not listed"),
        ({"file": MANIFEST_NAME}, "which is not listed"),
        ({"file": []}, "is not a valid manifest"),
        ({"file": None}, "has a verdict but no file"),
        ({"backend": "tensorflow"}, "unknown backend and precision 'tensorflow', 'fp32'"),
        ({"backend": []}, "unknown backend and precision"),
        ({"backend": "onnxruntime-cuda", "precision": "int8"}, "unknown backend and precision"),
        ({"precision": "fp8"}, "'fp8' is not a valid Precision"),
        ({"precision": None}, "None is not a valid Precision"),
        ({"name": "../fp32"}, "unsafe name"),
        ({"name": None}, "unsafe name"),
        ({"name": "int8"}, "variants have the same name"),
        ({"figures": 3}, "is not a valid manifest"),
    ],
)
def test_a_variant_that_means_nothing_is_refused(bundle_folder, refused, change, message):
    edit(bundle_folder, lambda d: d["variants"][0].update(change))
    refused(bundle_folder, message, names=bundle_folder / MANIFEST_NAME)


@pytest.mark.parametrize(
    "field", ["name", "backend", "precision", "file", "verdict", "reason", "required", "figures"]
)
def test_a_variant_without_one_of_its_fields_is_refused(bundle_folder, refused, field):
    edit(bundle_folder, lambda d: d["variants"][1].pop(field))
    refused(bundle_folder, f"KeyError: '{field}'", names=bundle_folder / MANIFEST_NAME)


@pytest.mark.parametrize("field", ["schema_version", "files", "variants", "contract", "name"])
def test_a_manifest_without_one_of_its_fields_is_refused(bundle_folder, refused, field):
    edit(bundle_folder, lambda d: d.pop(field))
    refused(bundle_folder, f"KeyError: '{field}'", names=bundle_folder / MANIFEST_NAME)


@pytest.mark.parametrize(
    ("change", "message"),
    [({"height": "4"}, "height is '4', not int"), ({"schema_version": 2}, "schema version 2")],
)
def test_a_bad_contract_in_the_manifest_is_refused(bundle_folder, refused, change, message):
    edit(bundle_folder, lambda d: d["contract"].update(change))
    refused(bundle_folder, message, names=bundle_folder / MANIFEST_NAME, kind=ContractError)


@pytest.mark.parametrize("version", ["2.0", "0.9", "10.0", "1x.0", "", None, 2])
def test_another_major_schema_is_refused(bundle_folder, refused, version):
    edit(bundle_folder, lambda d: d.update(schema_version=version))
    refused(bundle_folder, f"has schema version {version}; this edgekiln reads 1.x", names=MANIFEST_NAME)


def test_a_newer_minor_schema_with_unknown_fields_is_accepted(bundle_folder):
    def newer(document):
        document.update(schema_version="1.7", signature="later")
        document["variants"][0]["power_watts"] = 3
        document["files"]["report.json"]["mime"] = "application/json"

    edit(bundle_folder, newer)
    bundle = open_bundle(bundle_folder)
    assert bundle.manifest["signature"] == "later"
    with load(bundle_folder) as classifier:
        assert classifier.predict(RED).label == "red"


# Loading


def test_int8_is_preferred_to_fp32_on_the_cpu(bundle_folder, contract):
    with load(bundle_folder) as classifier:
        assert (classifier.variant.name, classifier.variant.backend) == ("int8", "onnxruntime-cpu")
        assert classifier.variant.precision == "int8"
        assert classifier.variant.reason == (
            "first in the order of preference that passed and runs here (nothing was measured on this kind of machine)"
        )
        assert scale_of(classifier) == 2.0  # the second engine of the bundle
        assert classifier.contract == contract
        assert classifier.session.threads is None


def test_the_public_load_is_the_same(bundle_folder):
    with ek.load(str(bundle_folder), threads=1) as classifier:
        assert classifier.session.threads == 1
        assert classifier.predict(RED).label == "red"


def test_preference_does_not_depend_on_the_order_in_the_manifest(make_bundle, variant):
    folder = make_bundle(variant("half", "fp16"), variant("quant", "int8"), variant("full", "fp32"))
    with load(folder) as classifier:
        assert classifier.variant.name == "quant"
    edit(folder, lambda d: d["variants"][1].update(verdict="fail"))
    with load(folder) as classifier:
        assert classifier.variant.name == "full"
        assert scale_of(classifier) == 3.0
    edit(folder, lambda d: d["variants"][2].update(verdict="inconclusive"))
    with load(folder) as classifier:
        assert classifier.variant.name == "half"


def test_a_variant_is_loaded_by_name(bundle_folder):
    with load(bundle_folder, variant="fp32", device="cpu", threads=2) as classifier:
        assert (classifier.variant.name, classifier.variant.reason) == ("fp32", "asked for by name")
        assert scale_of(classifier) == 1.0
        assert classifier.session.threads == 2


def test_an_unknown_variant_lists_the_names(bundle_folder, no_session):
    with pytest.raises(UsageError, match="has no variant 'fp64'; it has: fp32, int8"):
        load(bundle_folder, variant="fp64")


@pytest.mark.parametrize("verdict", ["fail", "inconclusive", "not-run"])
def test_a_variant_that_did_not_pass_needs_allow_unverified(make_bundle, variant, verdict):
    folder = make_bundle(variant("fp32", "fp32"), variant("int8", "int8", verdict=verdict))
    message = rf"'int8' is not deployable \(verdict {verdict}\): why int8 got .*allow_unverified=True"
    with pytest.raises(UsageError, match=message):
        load(folder, variant="int8")
    with load(folder, variant="int8", allow_unverified=True) as classifier:
        assert scale_of(classifier) == 2.0
    with pytest.raises(UsageError, match="allow_unverified needs a variant by name"):
        load(folder, allow_unverified=True)


@pytest.mark.parametrize("allow", [False, True])
def test_a_variant_that_was_not_built_is_refused(make_bundle, variant, no_session, allow):
    cuda = variant(
        "cuda", "fp16", backend="onnxruntime-cuda", file=None, verdict="not-run", reason="no GPU here"
    )
    folder = make_bundle(variant("fp32", "fp32"), cuda)
    with pytest.raises(UsageError, match="'cuda' was never built: no GPU here"):
        load(folder, variant="cuda", allow_unverified=allow)


def test_no_variant_that_passed_is_a_usage_error_with_the_verdicts(make_bundle, variant, no_session):
    folder = make_bundle(
        variant("fp32", "fp32", verdict="fail"), variant("int8", "int8", verdict="inconclusive")
    )
    message = r"No variant of .* passed its gate \(fp32: fail, int8: inconclusive\).*allow_unverified=True"
    with pytest.raises(UsageError, match=message):
        load(folder)


def test_a_bundle_without_variants_opens_but_does_not_load(make_bundle, no_session):
    folder = make_bundle()
    assert open_bundle(folder).variants == ()
    with pytest.raises(UsageError, match="No variant of"):
        load(folder)


def test_the_device_restricts_the_choice(bundle_folder, no_session):
    with pytest.raises(
        UsageError, match=r"has no variant for cuda; it has: fp32 on onnxruntime-cpu, int8 on"
    ):
        load(bundle_folder, device="cuda")
    with pytest.raises(UsageError, match="'fp32' runs on onnxruntime-cpu, not on cuda"):
        load(bundle_folder, variant="fp32", device="cuda")


def test_the_device_cpu_passes_over_cuda_without_a_word(make_bundle, variant):
    folder = make_bundle(variant("cuda", "fp16", backend="onnxruntime-cuda"), variant("fp32", "fp32"))
    with load(folder, device="cpu") as classifier:
        assert classifier.variant.reason == (
            "first in the order of preference that passed and runs here (nothing was measured on this kind of machine)"
        )
        assert classifier.session.backend == "onnxruntime-cpu"


@no_cuda
def test_a_cuda_variant_that_cannot_run_here_is_skipped_and_the_reason_says_so(make_bundle, variant):
    folder = make_bundle(
        variant("gpu32", "fp32", backend="onnxruntime-cuda"),
        variant("gpu16", "fp16", backend="onnxruntime-cuda"),
        variant("cpu", "fp32"),
    )
    with load(folder) as classifier:
        assert classifier.variant.name == "cpu"
        assert scale_of(classifier) == 3.0
        first, second = classifier.variant.reason.split("; ")[1:]
    assert first.startswith("gpu16 cannot run here (onnxruntime ")
    assert second.startswith("gpu32 cannot run here (onnxruntime ")
    assert "has no CUDAExecutionProvider here" in first


@no_cuda
def test_nothing_that_can_run_here_is_an_environment_problem(make_bundle, variant):
    folder = make_bundle(variant("gpu", "fp16", backend="onnxruntime-cuda"), variant("cpu", "fp32"))
    with pytest.raises(
        EnvironmentProblem, match=r"Nothing in .* can run here: gpu cannot run here \("
    ) as caught:
        load(folder, device="cuda")
    assert caught.value.exit_code == ExitCode.ENVIRONMENT == 5
    with pytest.raises(EnvironmentProblem, match="CUDAExecutionProvider"):
        load(folder, variant="gpu")


def test_a_listed_file_that_is_no_engine_is_an_engine_error(make_bundle, variant):
    folder = make_bundle(variant("fp32", "fp32"))
    (folder / "fp32.onnx").write_bytes(b"garbage")
    document = json.loads((folder / MANIFEST_NAME).read_text())
    write_manifest(folder, document)
    with pytest.raises(EngineError, match="This is no ONNX model") as caught:
        load(folder)
    assert caught.value.exit_code == 4


def test_an_engine_that_does_not_fit_the_contract_is_refused(make_bundle, variant, contract):
    values = {**contract.to_dict(), "classes": ["red", "green"]}
    folder = make_bundle(variant("fp32", "fp32"), contract=values)
    with pytest.raises(EngineError, match="gives 3 logits, the contract names 2 classes"):
        load(folder)


@pytest.mark.parametrize("device", ["gpu", "", "CPU"])
def test_an_unknown_device_is_refused(bundle_folder, no_session, device):
    with pytest.raises(UsageError, match=f"Unknown device {device!r}; known: cpu, cuda"):
        load(bundle_folder, device=device)


def test_an_operator_of_another_domain_runs_only_where_it_is_allowed_by_name(
    make_bundle, variant, build_model
):
    folder = make_bundle(variant("fp32", "fp32"))
    model = onnx.load_from_string(build_model())
    model.graph.node[-2].CopyFrom(
        onnx.helper.make_node("Gelu", ["shifted"], ["last"], domain="com.microsoft")
    )
    model.opset_import.add(domain="com.microsoft", version=1)
    (folder / "fp32.onnx").write_bytes(model.SerializeToString())
    write_manifest(folder, json.loads((folder / MANIFEST_NAME).read_text()))
    for allowed in ((), ["com.microsoft::Relu"]):
        with pytest.raises(
            EngineError, match=r"the operator com\.microsoft::Gelu, which is not one of ONNX's own"
        ):
            load(folder, allow_operators=allowed)
    with load(folder, allow_operators=["com.microsoft::Gelu"]) as classifier:
        picture = np.full((4, 8, 3), 9, np.uint8)
        np.testing.assert_allclose(
            classifier.predict(picture).logits, 9, atol=1e-5
        )  # Gelu(9) is 9 to 17 digits
        classifier.reload(folder)  # with the same permission


@pytest.mark.parametrize("name", ["x" * 300, "a\0", "a\0.zip"])
def test_what_is_no_path_is_a_wrong_argument(name):
    with pytest.raises(UsageError, match=r"is no path|There is no folder"):
        open_bundle(name)


def test_a_failing_disk_is_not_taken_for_a_wrong_name(monkeypatch, tmp_path):
    def fail(self):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(Path, "is_dir", fail)
    with pytest.raises(ResourceError, match="cannot be read: Input/output error") as caught:
        open_bundle(tmp_path / "bundle")
    assert caught.value.path == str(tmp_path / "bundle")


@pytest.mark.parametrize("code", [errno.EACCES, errno.EIO, errno.EMFILE])
@pytest.mark.parametrize("name", [MANIFEST_NAME, "fp32.onnx"])
def test_a_file_that_may_not_be_read_is_no_mark_against_the_bundle(bundle_folder, monkeypatch, name, code):
    unpatched = os.open

    def open_(path, *arguments, **options):
        if Path(path).name == name:
            raise OSError(code, os.strerror(code))
        return unpatched(path, *arguments, **options)

    monkeypatch.setattr(os, "open", open_)
    with pytest.raises(ResourceError, match=f"cannot be read: {os.strerror(code)}") as caught:
        load(bundle_folder)
    assert caught.value.path == str(bundle_folder / name)


def test_an_onnx_file_that_was_exported_for_another_contract_is_refused(make_bundle, variant, contract):
    folder = make_bundle(variant("fp32", "fp32"))
    exported = onnx.load(folder / "fp32.onnx")
    for classes, accepted in ((contract.classes, True), (contract.classes[::-1], False)):
        made_for = replace(contract, classes=classes)
        onnx.helper.set_model_props(exported, {"other": "x", CONTRACT_DIGEST_KEY: made_for.digest})
        onnx.save(exported, folder / "fp32.onnx")
        content = json.loads((folder / MANIFEST_NAME).read_text())
        write_manifest(folder, content)
        if accepted:
            load(folder).close()
            continue
        with pytest.raises(BundleError, match=r"fp32\.onnx was exported for another contract"):
            load(folder)


@pytest.mark.parametrize("provenance", [[], "x", 5, {"recipe": []}, {"parents": "x"}])
def test_a_provenance_that_is_none_is_refused(bundle_folder, refused, provenance):
    edit(bundle_folder, lambda document: document.update(provenance=provenance))
    refused(bundle_folder, "its provenance holds", names=MANIFEST_NAME)


@pytest.mark.parametrize("provenance", [None, {}, {"recipe": None, "parents": {}}])
def test_a_provenance_may_be_missing(bundle_folder, provenance):
    edit(bundle_folder, lambda document: document.update(provenance=provenance))
    open_bundle(bundle_folder)


@pytest.mark.parametrize("reason", ["\\ud800", "\\udcff and more"])
def test_text_that_is_no_utf8_is_refused(bundle_folder, refused, reason):
    path = bundle_folder / MANIFEST_NAME
    path.write_text(path.read_text().replace("why fp32 got its verdict", reason))
    refused(bundle_folder, "UnicodeEncodeError", names=MANIFEST_NAME)
    path.write_bytes(path.read_bytes().replace(reason.encode(), b"\xed\xa0\x80"))
    refused(bundle_folder, "UnicodeDecodeError", names=MANIFEST_NAME)


def test_letters_beyond_the_basic_plane_are_text(bundle_folder):
    path = bundle_folder / MANIFEST_NAME
    path.write_text(path.read_text().replace("why fp32 got its verdict", "\\ud83d\\ude00"))
    assert open_bundle(bundle_folder).variant("fp32").reason == "\N{GRINNING FACE}"


def test_a_folder_that_vanishes_meanwhile_is_told(bundle_folder, monkeypatch):
    def vanish(path):
        raise FileNotFoundError(errno.ENOENT, "No such file or directory")

    monkeypatch.setattr(os, "scandir", vanish)
    with pytest.raises(BundleError, match="cannot be read: No such file"):
        open_bundle(bundle_folder)


def test_a_reload_asks_for_the_keys_that_an_iterator_gave(bundle_folder):
    with load(bundle_folder, allow_operators=iter(["x::Y"])) as classifier:
        classifier.reload(bundle_folder)
