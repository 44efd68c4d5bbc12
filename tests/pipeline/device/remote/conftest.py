"""A device over a real sshd whose bench is quick, and the bundles that go there and back."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from sshd_support import Sshd, StubEnvironment, running_sshd
from tests_support import HEED_INTERRUPTS

from edgekiln.benchmarks.timing.plan import BenchmarkPlan
from edgekiln.pipeline.device.bench import BenchRequest, bench_on_device
from edgekiln.pipeline.device.remote.fleet_bench import FleetRequest, bench_on_devices
from edgekiln.pipeline.device.remote.registry import choose_devices
from edgekiln.pipeline.workspace.progress import SilentProgress

SHORT = {"processes": 2, "blocks": 4, "block_seconds": 0.01, "side_blocks": 1, "min_blocks": 4}


@pytest.fixture(scope="session")
def derived_bundle(made_once, tiny_run):
    """(parent with a short timing in its recipe, pictures, a bundle derived from it that was not timed). Read-only."""
    recipe, _, result = tiny_run

    def make(folder):
        parent, pictures = folder / "a parent", recipe.parent / "pictures"
        shutil.copytree(result.bundle, parent)
        manifest = json.loads((parent / "manifest.json").read_text("utf-8"))
        manifest["provenance"]["recipe"]["benchmark"] |= SHORT
        (parent / "manifest.json").write_text(json.dumps(manifest), "utf-8")
        request = BenchRequest(parent, folder / "derived", pictures, timed=False, plan=BenchmarkPlan(**SHORT))
        bench_on_device(request, SilentProgress())
        return parent, pictures, folder / "derived"

    return made_once("remote-derived", make)


@pytest.fixture(scope="module")
def sshd(tmp_path_factory):
    with running_sshd(tmp_path_factory.mktemp("ssh") / "a server") as server:
        yield server


class Told(SilentProgress):
    """Keeps what was told, and calls back on a line that holds a word."""

    def __init__(self):
        self.lines, self.calls = [], {}

    def message(self, text):
        self.lines.append(text)
        for word, call in list(self.calls.items()):
            if word in text:
                del self.calls[word]
                call()


@dataclass
class Desk:
    """Where a person sits: a devices.toml, a bundle, pictures, and a folder for results."""

    folder: Path
    sshd: Sshd
    stub: StubEnvironment
    parent: Path
    pictures: Path

    @property
    def devices(self):
        return self.folder / "devices.toml"

    @property
    def out(self):
        return self.folder / "a fleet"

    def write(self, *names, more="", **keys):
        values = {
            "host": "device",
            "ssh_config": str(self.sshd.config),
            "environment": str(self.stub.folder),
            **keys,
        }
        text = ""
        for name in names:
            folder = {"folder": str(self.folder / f"there {name}")} if "folder" not in keys else {}
            lines = [f"{key} = {json.dumps(value)}" for key, value in {**folder, **values}.items()]
            text += "\n".join([f'["{name}"]', *lines, ""])
        self.devices.write_text(text + more)

    def bench(self, *names, told=None, timed=False, **wishes):
        bench = BenchRequest(self.parent, self.out, self.pictures, timed=timed)
        request = FleetRequest(bench, choose_devices(self.devices, names), **wishes)
        return bench_on_devices(request, told or Told())

    @contextlib.contextmanager
    def start(self, out):
        """The command in a process of its own, on the device orin."""
        code = (
            HEED_INTERRUPTS
            + "import sys; from edgekiln.pipeline.cli import main; sys.argv[0] = 'edgekiln'; main()"
        )
        paths = os.pathsep.join(path for path in sys.path if path)
        caller = subprocess.Popen(
            [sys.executable, "-c", code, "bench", str(self.parent), "--on", "orin", "--no-bench", "-q", "--devices",
             str(self.devices), "--data", str(self.pictures), "--out", str(out)],
            stdout=subprocess.DEVNULL, env={**os.environ, "PYTHONPATH": paths},
        )  # fmt: skip
        try:
            yield caller
        finally:
            caller.kill()
            caller.wait()

    def hidden(self):
        """What lies in the folder of results besides results."""
        return (
            sorted(entry.name for entry in self.out.iterdir() if entry.name.startswith("."))
            if self.out.exists()
            else []
        )


@pytest.fixture
def desk(tmp_path, sshd, derived_bundle):
    parent, pictures, derived = derived_bundle
    stub = StubEnvironment(tmp_path / "an environment", derived).make()
    return Desk(tmp_path, sshd, stub, parent, pictures)
