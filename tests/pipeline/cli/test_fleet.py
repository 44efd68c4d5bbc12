"""The command ``fleet``: names of devices, formats, exit codes, and what it refuses."""

import json
import shutil
from pathlib import Path

import pytest

from edgekiln.pipeline.cli import main
from edgekiln.pipeline.device.remote.fleet_file import DeviceState, Fleet, write_fleet
from edgekiln.runtime.bundles.manifest import MANIFEST_NAME, write_manifest


@pytest.fixture
def bundles(tiny_run, tmp_path):
    """A function that copies the bundle to a place, with other verdicts where they are given."""

    def copy(place, verdict=None):
        folder = Path(shutil.copytree(tiny_run[2].bundle, tmp_path / place))
        if verdict is not None:
            report = json.loads((folder / "report.json").read_text())
            for row in report["variants"]:
                row |= {"verdict": verdict, "reason": "its answers\x1b[31m are others here"}
            (folder / "report.json").write_text(json.dumps(report))
            content = json.loads((folder / MANIFEST_NAME).read_text())
            write_manifest(folder, {k: v for k, v in content.items() if k not in {"files", "schema_version"}})
        return folder

    return copy


def run(capsys, *arguments):
    with pytest.raises(SystemExit) as ended:
        main(["fleet", *map(str, arguments)])
    done = capsys.readouterr()
    return ended.value.code or 0, done.out, done.err


def test_page_table_and_summary_are_of_the_same_devices(bundles, capsys, tmp_path):
    orin, pi5 = bundles("orin"), bundles("my pi")
    page = tmp_path / "fleet.html"
    assert run(capsys, orin, pi5, "--out", page) == (0, f"{page}\n", "")
    assert page.read_text("utf-8").startswith("<!doctype html>")
    for form in ("table", "markdown"):
        code, out, err = run(capsys, orin, pi5, "--format", form)
        assert (code, err) == (0, "")
        assert "On 2 of 2 devices a variant passes. No device is required." in out
        assert all(name in out for name in ("orin", "my pi", "int8"))


def test_exit_code_3_where_no_variant_passes_on_a_required_device(bundles, capsys, tmp_path):
    orin, pi5 = bundles("orin"), bundles("pi5", "fail")
    assert run(capsys, orin, pi5, "--require", "orin", "--format", "table")[0] == 0
    page = tmp_path / "fleet.html"
    code, out, err = run(capsys, orin, pi5, "--require", "orin", "--require", "pi5", "--out", page)
    assert (code, out) == (3, f"{page}\n")
    assert page.exists()
    assert (
        "No variant passes on pi5, which a release needs. pi5, fp32: its answers\\x1b[31m are others here."
        in err
    )
    code, out, err = run(capsys, orin, pi5, "--require", "pi5", "--json")
    document = json.loads(out)
    assert (code, document["ok"], document["failing"], document["error"]["code"]) == (
        3,
        False,
        ["pi5"],
        "gate",
    )
    assert [d["name"] for d in document["devices"]] == ["orin", "pi5"]
    assert "\x1b" not in run(capsys, pi5, "--format", "table")[1]


def test_a_device_is_called_as_its_folder_and_as_much_above_it_as_tells_it_apart(bundles, capsys):
    places = [bundles("orin/bundle"), bundles("a/here"), bundles("b/here")]
    document = json.loads(run(capsys, *places, "--json")[1])
    assert [d["name"] for d in document["devices"]] == [
        f"{places[0].parent.parent.name}/orin",
        "a/here",
        "b/here",
    ]
    document = json.loads(run(capsys, places[0], places[1], "--json")[1])
    assert [d["name"] for d in document["devices"]] == ["orin", "here"]


def test_the_folder_of_bench_on_tells_who_is_required_emulated_and_without_a_result(
    bundles, capsys, tmp_path
):
    bundles("results/here"), bundles("results/my arm"), bundles("other")
    states = [
        DeviceState("here", True, False, "done"),
        DeviceState("my arm", False, True, "done"),
        DeviceState("orin", True, False, "failed", "no route to host", "environment"),
    ]
    write_fleet(tmp_path / "results", Fleet("tiny", "0" * 64, True, tuple(states)))
    code, out, _ = run(capsys, tmp_path / "results", tmp_path / "other", "--json")
    document = json.loads(out)
    devices = {d["name"]: d for d in document["devices"]}
    assert (code, list(devices)) == (3, ["here", "my arm", "orin", "other"])
    assert document["failing"] == ["orin"]
    assert document["error"]["hint"] == "orin has no result: no route to host."
    assert devices["my arm"]["emulated_on"]
    assert not devices["here"]["emulated_on"]
    assert (devices["orin"]["state"], devices["orin"]["why"]) == ("failed", "no route to host")
    (tmp_path / "again").mkdir()
    bundles("again/here")
    code, out, err = run(capsys, tmp_path / "results", tmp_path / "again/here")
    assert (code, out) == (2, "")
    assert "Two devices have the same name: here." in err
    (tmp_path / "results/fleet.json").write_text("{")
    assert run(capsys, tmp_path / "results")[0] == 4


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (["orin", "orin"], 2, "is given twice"),
        (["orin", "--require", "pi5"], 2, "--require pi5 is none of these devices: orin."),
        (["nothing"], 2, "There is no file or folder"),
        (["orin", "--out", "orin/fleet.html"], 2, "lies in a bundle"),
        (["orin", "--out", "."], 2, "is a folder"),
        ([], 2, "Missing argument"),
        (["empty"], 2, "holds nothing to compare"),
        (["altered"], 4, "report.json"),
        (["senseless"], 4, "cannot be set side by side"),
    ],
)
def test_mistakes_are_told_with_their_exit_code(
    bundles, capsys, tmp_path, monkeypatch, arguments, code, told
):
    monkeypatch.chdir(tmp_path)
    bundles("orin")
    (tmp_path / "empty").mkdir()
    (bundles("altered") / "report.json").write_text("{}")
    senseless = bundles("senseless")
    report = json.loads((senseless / "report.json").read_text())
    report["recipe"] = {"gate": {"confidence": "much"}}
    report["variants"][0]["drop"] = {"value": "none"}
    (senseless / "report.json").write_text(json.dumps(report))
    content = json.loads((senseless / MANIFEST_NAME).read_text())
    write_manifest(senseless, {k: v for k, v in content.items() if k not in {"files", "schema_version"}})
    found, out, err = run(capsys, *arguments)
    assert (found, out) == (code, "")
    assert told in err
    assert "bug in edgekiln" not in err
