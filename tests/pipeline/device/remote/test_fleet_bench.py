"""`edgekiln bench BUNDLE --on DEVICE,...`: what ends up in the folder, whatever happens to the line and the devices."""

import json
import os
import shutil
import signal
import sys
from pathlib import Path

import pytest
from sshd_support import StubEnvironment, is_alive, wait_until, write_hostile

from edgekiln.benchmarks.report import read_report
from edgekiln.pipeline.cli import main
from edgekiln.pipeline.device.remote.fleet_file import read_fleet
from edgekiln.runtime.bundles.bundle import open_bundle
from edgekiln.runtime.bundles.manifest import write_manifest
from edgekiln.runtime.errors import (
    BundleError,
    EnvironmentProblem,
    ExitCode,
    ResourceError,
    UntrustedError,
    UsageError,
)

from .conftest import Told


def states(desk):
    return {one.name: (one.state, one.code) for one in read_fleet(desk.out).devices}


# --------------------------------------------------------------------------------------------------------------
# The real thing


@pytest.mark.slow
def test_a_bundle_is_measured_on_a_device_whose_bench_is_killed_once(desk, capsys):
    desk.write("my orin", environment=str(Path(sys.executable).parents[1]), required=True)
    told = Told()
    jobs = desk.folder / "there my orin" / "jobs"

    def kill_timing():
        wait_until(lambda: list(jobs.glob("*/.here.edgekiln-bench/bench-*.json")))
        for pid in _benches(jobs):
            os.kill(pid, signal.SIGKILL)

    told.calls["int8: "] = kill_timing
    killed = desk.bench("my orin", told=told, timed=True)
    assert isinstance(killed.errors["my orin"], ResourceError)
    assert "ended by signal 9" in killed.errors["my orin"].message
    assert states(desk) == {"my orin": ("failed", "resources")}
    kept = list(jobs.glob("*/.here.edgekiln-bench/bench-*.json"))
    assert kept
    with pytest.raises(SystemExit) as ended:
        main([
            "bench", str(desk.parent), "--on", "my orin", "--devices", str(desk.devices),
            "--data", str(desk.pictures), "--out", str(desk.out), "--json", "-q",
        ])  # fmt: skip
    document = json.loads(capsys.readouterr().out)
    assert ended.value.code == 0, document
    row = document["devices"][0]
    assert (row["name"], row["state"], row["required"], row["emulated"]) == ("my orin", "done", True, False)
    assert [(v["name"], v["verdict"]) for v in row["variants"]] == [("fp32", "pass"), ("int8", "pass")]
    bundle = open_bundle(desk.out / "my orin")
    report = read_report(desk.out / "my orin" / "report.json")
    assert bundle.manifest["parent"]["digest"] == open_bundle(desk.parent).digest
    assert report["benchmark"]["measurements"][0]["p50_ms"] > 0
    assert not list(jobs.iterdir())  # the result was fetched
    assert desk.hidden() == [".lock"]


def _benches(jobs):
    """Processes of a bench that work in the folder of a job."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            words, here = (entry / "cmdline").read_bytes().split(b"\0"), str((entry / "cwd").readlink())
        except OSError:
            continue
        if here.startswith(str(jobs)) and b"bench" in words:
            found.append(int(entry.name))
    return found


# --------------------------------------------------------------------------------------------------------------
# Cuts


@pytest.mark.parametrize("phase", ["sends", "benches", "fetches the result"])
def test_a_line_cut_in_any_phase_leaves_no_half_and_the_same_command_goes_on(desk, phase):
    desk.write("orin")
    desk.stub.wait(phase == "benches")
    told = Told()

    def cut():
        if phase == "benches":
            desk.stub.began()
        desk.sshd.kill_sessions()

    told.calls[phase if phase != "benches" else "stub: at work"] = cut
    result = desk.bench("orin", told=told)
    assert "was cut" in result.errors["orin"].message
    assert states(desk) == {"orin": ("failed", "environment")}
    assert not (desk.out / "orin").exists()
    for pid, _ in desk.stub.entries("begin"):
        wait_until(lambda pid=pid: not is_alive(pid))
    desk.stub.wait(False)
    again = Told()
    result = desk.bench("orin", told=again)
    assert not result.errors
    assert states(desk) == {"orin": ("done", None)}
    open_bundle(desk.out / "orin")
    assert desk.hidden() == [".lock"]
    if phase == "fetches the result":  # what was finished there is not done twice
        assert len(desk.stub.entries("end")) == 1
        assert not any("benches" in line or "sends" in line for line in again.lines)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT], ids=["killed", "Ctrl-C"])
def test_a_caller_that_ends_leaves_nothing_running_and_its_command_goes_on(desk, number):
    desk.write("orin")
    desk.stub.wait()
    with desk.start(desk.out) as caller:
        pid = desk.stub.began()
        assert states(desk) == {"orin": ("failed", "interrupted")}
        caller.send_signal(number)
        assert caller.wait(60) == (ExitCode.INTERRUPTED if number == signal.SIGINT else -signal.SIGKILL)
    wait_until(lambda: not is_alive(pid))
    desk.stub.wait(False)
    assert not desk.bench("orin").errors


# --------------------------------------------------------------------------------------------------------------
# Several


def test_devices_on_one_host_take_turns_and_one_that_fails_stops_no_other(desk):
    desk.write("one", "two", more='[broken]\nhost = "host.invalid"\n')
    told = Told()
    result = desk.bench("one", "broken", "two", told=told)
    assert list(result.reports) == ["one", "two"]
    assert isinstance(result.errors["broken"], EnvironmentProblem)
    assert states(desk) == {"one": ("done", None), "broken": ("failed", "environment"), "two": ("done", None)}
    (_, first_end), (_, second_end) = desk.stub.entries("end")
    (_, first), (_, second) = desk.stub.entries("begin")
    assert first < first_end <= second < second_end
    assert any("is on the same host" in line for line in told.lines)


def test_a_second_client_is_told_who_has_the_device(desk, tmp_path):
    desk.write("orin")
    desk.stub.wait()
    with desk.start(tmp_path / "others") as first:
        desk.stub.began()
        error = desk.bench("orin").errors["orin"]
        assert isinstance(error, ResourceError)
        assert "in use by" in error.message
        desk.stub.wait(False)
        assert first.wait(60) == ExitCode.OK
    assert not desk.bench("orin").errors


def test_pictures_that_are_there_are_not_sent_again_and_an_altered_one_is(desk):
    desk.write("orin")
    first, again, mended = Told(), Told(), Told()
    assert not desk.bench("orin", told=first).errors
    assert any("sends 38 of 38 files" in line for line in first.lines)
    shutil.rmtree(desk.out)
    assert not desk.bench("orin", told=again).errors
    assert not any("sends" in line for line in again.lines)
    shutil.rmtree(desk.out)
    blob = next((desk.folder / "there orin" / "blobs").iterdir())
    blob.write_bytes(b"x" * blob.stat().st_size)  # a failing SD card
    assert not desk.bench("orin", told=mended).errors
    assert any("sends 1 of 38 files" in line for line in mended.lines)


def test_a_device_that_was_added_joins_what_was_measured_before(desk):
    desk.write("orin")
    desk.bench("orin")
    desk.write("orin", "pi")
    told = Told()
    result = desk.bench("pi", "orin", told=told)
    assert [one.name for one in result.fleet.devices] == ["orin", "pi"]
    assert "orin: measured before: kept as it is" in told.lines
    assert len(desk.stub.entries("begin")) == 2


def test_a_folder_of_other_results_or_another_thing_is_not_touched(desk, tmp_path):
    desk.write("orin")
    desk.bench("orin")
    with pytest.raises(UsageError, match="another --no-bench"):
        desk.bench("orin", timed=True)
    values = json.loads((desk.out / "fleet.json").read_text())
    values["bundle"]["digest"] = "0" * 64
    (desk.out / "fleet.json").write_text(json.dumps(values))
    with pytest.raises(UsageError, match="another bundle"):
        desk.bench("orin")
    values["devices"][0]["name"] = "../x"
    (desk.out / "fleet.json").write_text(json.dumps(values))
    with pytest.raises(BundleError, match="no name of a device"):
        desk.bench("orin")
    shutil.rmtree(desk.out)
    desk.out.mkdir()
    (desk.out / "thesis.txt").touch()
    with pytest.raises(UsageError, match="is in use"):
        desk.bench("orin")
    assert [entry.name for entry in desk.out.iterdir()] == ["thesis.txt"]


def test_where_the_processor_is_emulated_nothing_is_timed(desk, tmp_path):
    code = "true = agent.describe_machine\nagent.describe_machine = lambda: dict(true(), emulated=True)"
    desk.write("qemu", python=write_hostile(tmp_path / "python", code))
    desk.stub.wait()
    told = Told()
    arguments = []

    def look():
        pid = desk.stub.began()
        arguments.extend(Path(f"/proc/{pid}/cmdline").read_text().split("\0"))
        desk.stub.wait(False)

    told.calls["stub: at work"] = look
    assert not desk.bench("qemu", told=told, timed=True).errors
    assert "--no-bench" in arguments
    assert read_fleet(desk.out).devices[0].emulated


def test_another_edgekiln_there_or_none_is_refused_before_anything_is_sent(desk):
    told = Told()
    desk.write("empty", environment=str(desk.folder / "no such environment"))
    error = desk.bench("empty", told=told).errors["empty"]
    assert "is not set up" in error.message
    assert error.hint == "Run: edgekiln device setup empty"
    (desk.stub.folder / "bin" / "python").write_text(
        '#!/bin/sh\necho \'{"version": "0.0.9", "digest": "x"}\'\n'
    )
    desk.write("old one")
    error = desk.bench("old one", told=told).errors["old one"]
    assert "has edgekiln 0.0.9, here is" in error.message
    assert error.hint == "Run: edgekiln device setup 'old one'"
    assert not any("sends" in line for line in told.lines)


# --------------------------------------------------------------------------------------------------------------
# A hostile device

_SEND = """
true = agent.Agent.do_get
def get(self, place, limit):
    if place[-1] == {name!r}:
        {body}
        return {{}}
    return true(self, place, limit)
agent.Agent.do_get = get
"""


def _manifest(change):
    return f"import json; m = json.loads(open(self._path(*place)).read()); {change}; " + (
        "self._wire.write(b'D', json.dumps(m).encode())"
    )


@pytest.mark.parametrize(
    ("name", "body", "says"),
    [
        ("report.json", "self._wire.write(b'D', b'{}')", "otherwise than its manifest says"),
        ("report.json", "pass", "otherwise than its manifest says"),
        (
            "manifest.json",
            "[self._wire.write(b'D', b'x' * (1 << 16)) for _ in range(256)] + [self._wire.write(b'D', b'x')]",
            "has over",
        ),
        ("manifest.json", _manifest("m['files']['../../evil'] = m['files']['report.json']"), "unsafe name"),
        ("manifest.json", _manifest("m['files']['/etc/evil'] = m['files']['report.json']"), "unsafe name"),
        (
            "manifest.json",
            _manifest("m['files']['report.json']['size'] = 1 << 40"),
            "more than a bundle may hold",
        ),
        (
            "manifest.json",
            _manifest("m['files'].update({f'f{n}': m['files']['report.json'] for n in range(600)})"),
            "more than a bundle may hold",
        ),
        ("manifest.json", _manifest("m['parent']['digest'] = '0' * 64"), "made from another bundle"),
    ],
)
def test_nothing_of_a_hostile_device_is_believed_or_written_elsewhere(desk, tmp_path, name, body, says):
    code = _SEND.format(name=name, body=body)
    desk.write("orin", python=write_hostile(tmp_path / "python", code))
    before = {path for path in tmp_path.rglob("*") if "there" not in path.parts[len(tmp_path.parts)]}
    result = desk.bench("orin")
    assert isinstance(result.errors["orin"], UntrustedError)
    assert says in result.errors["orin"].message
    assert states(desk)["orin"][0] == "failed"
    new = {path for path in tmp_path.rglob("*") if "there" not in path.parts[len(tmp_path.parts)]} - before
    outside = [p for p in new if desk.out not in (p, *p.parents) and desk.stub.folder not in p.parents]
    assert outside == []
    assert {entry.name for entry in desk.out.iterdir()} <= {".lock", ".orin.part", "fleet.json"}


def test_a_report_without_sense_is_told_as_untrusted(desk, tmp_path, derived_bundle, capsys):
    odd = shutil.copytree(derived_bundle[2], tmp_path / "odd")
    report = json.loads((odd / "report.json").read_text("utf-8"))
    report["recipe"], report["notices"] = {}, ["\x1b[2J\u202e"]
    report["baseline"] = {"accuracy": "none"}
    (odd / "report.json").write_text(json.dumps(report))
    manifest = json.loads((odd / "manifest.json").read_text("utf-8"))
    write_manifest(
        odd, {key: value for key, value in manifest.items() if key not in {"files", "schema_version"}}
    )
    desk.stub = StubEnvironment(tmp_path / "odd environment", odd).make()
    desk.write("orin")
    with pytest.raises(SystemExit) as ended:
        main([
            "bench", str(desk.parent), "--on", "orin", "--no-bench", "--devices", str(desk.devices),
            "--data", str(desk.pictures), "--out", str(desk.out),
        ])  # fmt: skip
    out, err = capsys.readouterr()
    assert ended.value.code == ExitCode.UNTRUSTED, err
    assert "The report that a device made cannot be used" in err
    assert all(line.isprintable() for line in out.splitlines())


# --------------------------------------------------------------------------------------------------------------
# The command


def test_the_command_tells_each_device_and_ends_as_the_first_that_failed(desk, capsys):
    desk.write("orin", more='[broken]\nhost = "host.invalid"\n')
    words = ["--devices", str(desk.devices), "--data", str(desk.pictures), "--out", str(desk.out)]
    with pytest.raises(SystemExit) as ended:
        main(["bench", str(desk.parent), "--on", "orin,broken", "--no-bench", *words])
    assert ended.value.code == ExitCode.ENVIRONMENT
    out, err = capsys.readouterr()
    assert "device   orin" in out
    assert "device   broken: failed: The device 'broken' (host.invalid) cannot be reached" in out
    assert "orin: benches" in err
    for wrong, says in (
        (["--on", ","], "--on names no device"),
        (["--on", "nobody"], "has no device 'nobody'"),
    ):
        with pytest.raises(SystemExit) as ended:
            main(["bench", str(desk.parent), *wrong, *words])
        assert ended.value.code == ExitCode.USAGE
        assert says in capsys.readouterr().err
