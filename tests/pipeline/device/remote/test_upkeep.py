"""`edgekiln device` over a real sshd, without a network: a machine is added, set up, and left as it was."""

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from sshd_support import running_sshd, write_hostile

from edgekiln.pipeline.cli import main
from edgekiln.pipeline.device.remote.agent_machine import describe_edgekiln
from edgekiln.pipeline.device.remote.registry import read_devices
from edgekiln.pipeline.device.remote.wheel import download_wheels, make_wheel, platform_tags
from edgekiln.runtime.errors import EnvironmentProblem, ExitCode

ARM = {"machine": "aarch64", "libc": ["glibc", "2.35"]}


@pytest.fixture
def run(tmp_path, capsys):
    """Run ``edgekiln device`` in a folder of its own: (exit code, document or text, stderr)."""

    def run(*words):
        with pytest.raises(SystemExit) as ended:
            main(["device", *words, "--devices", str(tmp_path / "devices.toml")])
        out, err = capsys.readouterr()
        return ended.value.code, json.loads(out) if "--json" in words else out, err

    return run


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    """A server whose users have no edgekiln, and whose pip has no index and installs nothing that it is not given."""
    environment = {"PYTHONPATH": "", "PIP_NO_INDEX": "1", "PIP_NO_DEPS": "1"}
    with running_sshd(tmp_path_factory.mktemp("bare") / "server", environment=environment) as server:
        yield server


@pytest.mark.slow
def test_a_device_is_added_set_up_looked_at_and_left_as_it_was(run, bare, tmp_path):
    there = tmp_path / "put there"
    words = ["--ssh-config", str(bare.config), "--python", sys.executable, "--folder", str(there)]
    code, document, _ = run("add", "my pi", "device", *words, "--json")
    assert (code, document["machine"]["machine"]) == (0, os.uname().machine)
    code, document, _ = run("check", "my pi", "--json")
    rows = {row["name"]: row for row in document["rows"]}
    assert (code, rows["environment"]["state"]) == (ExitCode.ENVIRONMENT, "FAIL")
    assert rows["environment"]["fix"] == document["error"]["hint"] == "Run: edgekiln device setup 'my pi'"
    assert not there.exists()  # a check leaves nothing
    code, text, err = run("setup", "my pi", "--extra", "none")
    assert code == 0, err
    assert text.startswith("my pi: edgekiln ")
    asked = subprocess.run(
        [there / "env" / "bin" / "python", "-c", "import edgekiln.runtime.version as v; print(v.__file__)"],
        capture_output=True, text=True, check=True, env={"PATH": os.environ["PATH"]}, cwd="/",
    )  # fmt: skip
    assert asked.stdout.startswith(str(there))
    assert sorted(entry.name for entry in there.iterdir()) == [".edgekiln-device", "blobs", "env", "jobs"]
    code, text, _ = run("list")
    assert "my pi  device" in text
    code, document, _ = run("remove", "my pi", "--json")
    assert (code, document["removed"]) == (0, str(there))
    assert not there.exists()
    assert read_devices(tmp_path / "devices.toml") == {}


def test_nothing_is_kept_of_a_machine_that_cannot_be_reached(run, bare, tmp_path):
    code, document, _ = run("add", "pi", "host.invalid", "--ssh-config", str(bare.config), "--json")
    assert (code, document["error"]["code"]) == (ExitCode.ENVIRONMENT, "environment")
    assert not (tmp_path / "devices.toml").exists()
    (tmp_path / "devices.toml").write_text('[gone]\nhost = "host.invalid"\n')
    code, _, err = run("remove", "gone")
    assert code == ExitCode.ENVIRONMENT
    assert "cannot be reached" in err
    assert run("remove", "gone", "--forget")[0] == 0
    assert read_devices(tmp_path / "devices.toml") == {}


def test_a_folder_that_is_not_edgekilns_is_neither_used_nor_removed(run, bare, tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "me.jpg").touch()
    words = [
        "--ssh-config",
        str(bare.config),
        "--python",
        sys.executable,
        "--folder",
        str(tmp_path / "photos"),
    ]
    assert run("add", "pi", "device", *words)[0] == 0
    code, _, err = run("setup", "pi")
    assert code == ExitCode.RESOURCES
    assert "files that are not edgekiln's" in err
    assert run("remove", "pi")[0] == 0
    assert (tmp_path / "photos" / "me.jpg").exists()


@pytest.mark.parametrize(
    ("facts", "says"),
    [
        ("dict(true(), python=[3, 8, 10])", "edgekiln needs 3.10 or newer"),
        ("dict(true(), python='nonsense')", "edgekiln needs 3.10 or newer"),
    ],
)
def test_a_python_that_is_too_old_is_told_and_not_used(run, bare, tmp_path, facts, says):
    code = f"true = agent.describe_machine\nagent.describe_machine = lambda: {facts}"
    words = ["--ssh-config", str(bare.config), "--folder", str(tmp_path / "x")]
    assert run("add", "old", "device", *words, "--python", write_hostile(tmp_path / "python", code))[0] == 0
    code, _, err = run("setup", "old")
    assert code == ExitCode.ENVIRONMENT
    assert says in err
    assert run("check", "old", "--json")[1]["rows"][1]["state"] == "FAIL"


def test_an_environment_of_ones_own_is_not_overwritten(run, bare, tmp_path):
    words = ["--ssh-config", str(bare.config), "--python", sys.executable, "--folder", str(tmp_path / "x")]
    assert run("add", "pi", "device", *words, "--environment", "~/my-env")[0] == 0
    code, _, err = run("setup", "pi")
    assert code == ExitCode.USAGE
    assert "is your own: ~/my-env" in err


@pytest.mark.parametrize("value", ["None", "{'a': 1}", "['x' * 10**5, []]"])
def test_facts_without_sense_are_no_bug_of_the_desk(run, bare, tmp_path, value):
    code = (
        f"agent.Agent.do_facts = lambda self, environment: dict.fromkeys("
        f"['free', 'venv', 'jetpack', 'tensorrt', 'cuda', 'governors', 'environment'], {value})\n"
        f"agent.describe_machine = lambda: dict.fromkeys(['python', 'libc', 'machine', 'emulated'], {value})"
    )
    words = ["--ssh-config", str(bare.config), "--folder", str(tmp_path / "x")]
    assert run("add", "odd", "device", *words, "--python", write_hostile(tmp_path / "python", code))[0] == 0
    for word in ("check", "setup"):
        code, _, err = run(word, "odd")
        assert code == ExitCode.ENVIRONMENT, err
        assert "bug in edgekiln" not in err


# --------------------------------------------------------------------------------------------------------------
# Wheels


def test_the_wheel_holds_this_very_edgekiln_and_the_same_bytes_each_time(tmp_path):
    name, content = make_wheel()
    assert make_wheel() == (name, content)
    path = tmp_path / name
    path.write_bytes(content)
    with zipfile.ZipFile(path) as archive:
        archive.extractall(tmp_path / "there")
        info = name.removesuffix("-py3-none-any.whl") + ".dist-info"
        listed = {line.split(",")[0] for line in archive.read(f"{info}/RECORD").decode().splitlines()}
        assert listed == set(archive.namelist())
        assert "edgekiln = edgekiln.pipeline" in archive.read(f"{info}/entry_points.txt").decode()
        assert b"Name: edgekiln" in archive.read(f"{info}/METADATA")
    code = (
        "import json; from edgekiln.pipeline.device.remote.agent_machine import describe_edgekiln as describe; "
        "print(json.dumps(describe()))"
    )
    asked = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True,
        env={**os.environ, "PYTHONPATH": str(tmp_path / "there")}, cwd=tmp_path,
    )  # fmt: skip
    assert json.loads(asked.stdout)["digest"] == describe_edgekiln()["digest"]


def test_the_platform_of_a_device_is_what_its_c_library_says():
    tags = platform_tags(ARM)
    assert tags[0] == "manylinux_2_35_aarch64"
    assert {"manylinux_2_17_aarch64", "manylinux2014_aarch64"} <= set(tags)
    assert "manylinux_2_36_aarch64" not in tags
    assert platform_tags({"machine": "x86_64", "libc": ["", ""]})[0] == "musllinux_1_2_x86_64"
    assert platform_tags({"machine": "x86_64", "libc": ["glibc", "odd"]})[0] == "manylinux_2_17_x86_64"


def test_a_package_without_a_wheel_for_the_platform_is_told_before_anything_is_sent(tmp_path, monkeypatch):
    shelf = tmp_path / "shelf"
    shelf.mkdir()
    name, content = make_wheel()
    (tmp_path / name).write_bytes(content)
    for package, tag in (("numpy", "cp311-cp311-win_amd64"), ("click", "py3-none-any")):
        _write_wheel(shelf, package, tag)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(shelf))
    with pytest.raises(EnvironmentProblem, match="numpy") as told:
        download_wheels(tmp_path / name, (), ARM, (3, 11, 2), tmp_path / "fetched")
    assert "manylinux_2_35_aarch64" in told.value.message
    for package in ("numpy", "Pillow"):
        _write_wheel(shelf, package, "cp311-cp311-manylinux_2_28_aarch64")
    _write_wheel(shelf, "rich", "py3-none-any")
    found = download_wheels(tmp_path / name, (), ARM, (3, 11, 2), tmp_path / "fetched")
    assert [path.name.split("-")[0] for path in found] == ["Pillow", "click", "edgekiln", "numpy", "rich"]


def _write_wheel(shelf: Path, package: str, tag: str) -> None:
    info = f"{package}-99.0.dist-info"
    with zipfile.ZipFile(shelf / f"{package}-99.0-{tag}.whl", "w") as archive:
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {package}\nVersion: 99.0\n")
        archive.writestr(f"{info}/WHEEL", f"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: {tag}\n")
        archive.writestr(f"{info}/RECORD", "")
