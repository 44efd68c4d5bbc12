"""What was brought along is joined, checked and unpacked, and nothing is installed."""

import sys
import zipfile
from pathlib import Path

import pytest

from edgekiln.pipeline.gpu_suite import suite
from edgekiln.pipeline.gpu_suite.context import Run, SuiteOptions
from edgekiln.pipeline.gpu_suite.inputs import explain_unfit, gather_inputs, unpack_wheel
from edgekiln.pipeline.gpu_suite.isolation import run_isolated
from edgekiln.pipeline.gpu_suite.packing import Packed, pack_parts

HERE = f"cp{sys.version_info.major}{sys.version_info.minor}"
GOOD = "brought_along-1.2-py3-none-any.whl"


def make_wheel(path, files):
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    return path


@pytest.fixture
def wheel(tmp_path):
    files = {
        "brought_along/__init__.py": "answer = 42",
        "brought_along-1.2.dist-info/METADATA": "Metadata-Version: 2.1\nName: brought-along\nVersion: 1.2\n",
        "brought_along-1.2.data/purelib/beside_it.py": "",
        "brought_along-1.2.data/scripts/run": "",
    }
    return make_wheel(tmp_path / GOOD, files)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("a-1-py3-none-any.whl", None),
        (f"a-1-{HERE}-{HERE}-manylinux_2_17_x86_64.manylinux2014_x86_64.whl", None),
        ("a-1-cp38-abi3-manylinux_2_28_x86_64.whl", None),
        ("a-1-py2.py3-none-any.whl", None),
        ("a-1-cp27-cp27m-manylinux1_x86_64.whl", "is for cp27"),
        ("a-1-cp399-abi3-any.whl", "is for cp399"),
        ("a-1-py3-none-win_amd64.whl", "is for win_amd64"),
        ("a.whl", "is not named as wheels are"),
    ],
)
def test_a_wheel_for_another_python_or_machine_is_told(name, words, monkeypatch):
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    found = explain_unfit(name)
    assert (found is None) if words is None else (words in found)


def test_a_wheel_is_unpacked_without_its_scripts(wheel, tmp_path):
    unpack_wheel(wheel, tmp_path / "site")
    site = tmp_path / "site"
    assert {str(path.relative_to(site)) for path in site.rglob("*") if path.is_file()} == {
        "brought_along/__init__.py",
        "beside_it.py",
        "brought_along-1.2.dist-info/METADATA",
    }


def test_a_wheel_that_leads_out_of_its_folder_is_refused(tmp_path):
    bad = make_wheel(tmp_path / "bad-1-py3-none-any.whl", {"../outside.py": ""})
    with pytest.raises(ValueError, match="leads out of its folder"):
        unpack_wheel(bad, tmp_path / "site")
    assert not (tmp_path / "outside.py").exists()
    found = gather_inputs(
        {"given": str(tmp_path), "target": str(tmp_path / "t"), "site": str(tmp_path / "site")},
        lambda event: None,
    )
    assert found["wheels"][bad.name]["state"] == "failed"


def test_the_suite_sees_the_packages_that_were_brought(wheel, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    folder = tmp_path / "parts"
    folder.mkdir()
    broken = tmp_path / "tiny.onnx"
    broken.write_bytes(b"graph")
    manifest = pack_parts([Packed(wheel), Packed(broken)], folder, {})
    piece = manifest["files"]["tiny.onnx"]["pieces"][0]
    damaged = folder / f"part-{piece['part']}" / piece["file"]
    damaged.unlink()
    damaged.write_bytes(b"grapf")
    run = Run(SuiteOptions(given=folder), tmp_path / "work", lambda text: None)
    suite._gather(run)
    part = run.parts["inputs"].to_dict()
    assert part["state"] == "done"
    assert part["result"]["counts"] == {"done": 1, "skipped": 0, "failed": 1}
    assert part["result"]["wheels"][GOOD]["state"] == "done"
    assert part["result"]["failures"][0]["test"] == "tiny.onnx"  # and so the run ends with 3
    assert suite.is_bad(part)
    assert Path(run.given) == tmp_path / "work" / "given"
    assert sys.path[-1] == str(tmp_path / "work" / "site")  # what is installed goes first
    # A child sees it too: it finds the name, which is no function.
    assert run_isolated("brought_along:answer", {}, limit_s=30).reason.startswith("TypeError: 'int' object")


def test_plain_files_need_no_manifest(tmp_path):
    (tmp_path / "lite0.onnx").write_bytes(b"graph")
    found = gather_inputs(
        {"given": str(tmp_path), "target": str(tmp_path / "t"), "site": str(tmp_path / "s")},
        lambda event: None,
    )
    assert (found["folder"], found["parts"], found["files"]) == (str(tmp_path), None, {})
