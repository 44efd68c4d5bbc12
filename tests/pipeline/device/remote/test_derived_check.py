"""What a device sends is held against the parent: a bundle that agrees with itself is not enough."""

import io
import json
import shutil

import numpy as np
import pytest

from edgekiln.pipeline.device.remote.derived_check import check_derived
from edgekiln.runtime.bundles.bundle import open_bundle
from edgekiln.runtime.bundles.manifest import write_manifest
from edgekiln.runtime.errors import BundleError


@pytest.fixture
def derived(derived_bundle, tmp_path):
    return shutil.copytree(derived_bundle[2], tmp_path / "derived")


def alter(folder, change):
    """Change files and manifest, and list the files anew, as who makes a bundle can."""
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text("utf-8"))
    change(manifest, folder)
    for key in ("files", "schema_version"):
        manifest.pop(key)
    write_manifest(folder, manifest)


def alter_answers(folder, change):
    name = json.loads((folder / "manifest.json").read_text("utf-8"))["logits"]
    with np.load(io.BytesIO((folder / name).read_bytes())) as arrays:
        values = {key: arrays[key] for key in arrays.files}
    change(values)
    np.savez(folder / name, **values)


def alter_report(folder, change):
    report = json.loads((folder / "report.json").read_text("utf-8"))
    change(report)
    (folder / "report.json").write_text(json.dumps(report), "utf-8")


def test_an_honest_one_is_taken(derived_bundle, derived):
    report = check_derived(open_bundle(derived), open_bundle(derived_bundle[0]), 30)
    assert [row["verdict"] for row in report["variants"]] == ["pass", "pass"]


def network(manifest, folder):
    (folder / "int8.onnx").write_bytes((folder / "int8.onnx").read_bytes() + b"\0")


def other_file(manifest, folder):
    (folder / "evil.onnx").write_bytes((folder / "int8.onnx").read_bytes() + b"\0")
    variant = next(v for v in manifest["variants"] if v["name"] == "int8")
    variant["file"], variant["files"] = "evil.onnx", ["evil.onnx"]


def swapped(manifest, folder):
    variant = next(v for v in manifest["variants"] if v["name"] == "int8")
    variant["file"], variant["files"] = "fp32.onnx", ["fp32.onnx"]


def labels(manifest, folder):
    alter_answers(folder, lambda values: values["labels"].__setitem__(0, 1 - values["labels"][0]))


def baseline(manifest, folder):
    alter_answers(folder, lambda values: values["logits.baseline"].__setitem__(0, 0))


def wrong_answers(manifest, folder):
    """All wrong, and said to have passed."""

    def change(values):
        values["logits.int8"] = np.roll(values["logits.int8"], 1, axis=1)

    alter_answers(folder, change)


def not_a_number(manifest, folder):
    alter_answers(folder, lambda values: values["logits.int8"].__setitem__((0, 0), np.nan))


def no_answers(manifest, folder):
    alter_answers(folder, lambda values: values.pop("logits.int8"))


def other_verdict(manifest, folder):
    alter_report(folder, lambda report: report["variants"][1].update(verdict="fail"))


def no_report(manifest, folder):
    (folder / "report.json").unlink()


def of_another_bundle(manifest, folder):
    alter_report(folder, lambda report: report["parent"].update(digest="0" * 64))


def easier_gate(manifest, folder):
    manifest["gate"] = {**manifest["gate"], "max_drop": 1.0}


def fewer_variants(manifest, folder):
    manifest["variants"] = manifest["variants"][:1]


def not_required(manifest, folder):
    manifest["variants"][0]["required"] = False


def more_files(manifest, folder):
    (folder / "run.sh").write_text("echo owned")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (network, "int8.onnx is not the parent's"),
        (other_file, "evil.onnx is not the parent's"),
        (swapped, "int8 is another file than the parent's"),
        (labels, "the pictures, labels or PyTorch's answers"),
        (baseline, "the pictures, labels or PyTorch's answers"),
        (wrong_answers, "by its own answers it did not"),
        (not_a_number, "NaN or infinity"),
        (no_answers, "without the answers that show it"),
        (other_verdict, "other verdicts than its manifest"),
        (no_report, "has no report"),
        (of_another_bundle, "is of another bundle"),
        (easier_gate, "its gate is not the parent's"),
        (fewer_variants, "its variants are not the parent's"),
        (not_required, "its variants are not the parent's"),
        (more_files, "run.sh is not the parent's"),
    ],
)
def test_whatever_is_altered_consistently_is_refused(derived_bundle, derived, change, says):
    alter(derived, change)
    opened = open_bundle(derived)  # it agrees with itself
    with pytest.raises(BundleError, match=says):
        check_derived(opened, open_bundle(derived_bundle[0]), 30)
