"""An emulated processor as a device over ssh, and a page that sets it beside this machine.

python3 fleet.py ROOT CPU QEMU WORK: ``check.sh`` made ROOT, with this checkout in it. The tests' tiny network goes
through ``edgekiln device check`` (the doctor there), ``edgekiln bench --on arm,here`` (canaries, answers, verdicts) and
``edgekiln fleet``. sshd and ssh are this machine's, on loopback, with keys of their own; what a connection runs, runs
in the jail. Exits 0 where both architectures pass and no time of the emulated one is told, 1 where not, 5 without sshd.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

from sshd_support import SSHD, WITHOUT_SSHD, running_sshd
from tests_support import TINY_RECIPE, write_pictures

from edgekiln.runtime.version import __version__

SHORT = "blocks = 4\nmin_blocks = 4\nprocesses = 2\nblock_seconds = 0.01\nside_blocks = 1\n"
JAIL = Path(__file__).with_name("jail.sh")
SOURCES = ["runtime", "export", "benchmarks", "pipeline"]


def edgekiln(*arguments, codes=(0,)):
    """The document of one command of this checkout."""
    command = [sys.executable, "-m", "edgekiln.pipeline", *map(str, arguments), "--json"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    print(f"     edgekiln {' '.join(map(str, arguments))}: exit code {done.returncode}", flush=True)
    if done.returncode not in codes:
        sys.exit(f"FAIL {done.stdout}")
    return json.loads(done.stdout)


def make_bundle(work):
    """The tests' tiny network, trained here, and its pictures."""
    if not (work / "runs/tiny/bundle/manifest.json").exists():
        write_pictures(work / "pictures")
        small = TINY_RECIPE.replace("size = 32", "size = 16")  # a quarter of the work
        (work / "tiny.toml").write_text(small + SHORT)
        edgekiln("run", work / "tiny.toml", "--runs", work / "runs")
    return work / "runs/tiny/bundle"


def open_jail(root, cpu, qemu):
    """A process whose namespaces are the jail, with all mounted; and the command that enters it."""
    keeper = subprocess.Popen(
        ["unshare", "--user", "--map-root-user", "--mount", "--pid", "--fork", "--kill-child",
         "sh", str(JAIL), str(root), cpu, qemu, "sh", "-c", "echo ready; cat"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    assert keeper.stdout.readline() == b"ready\n"
    inside = Path(f"/proc/{keeper.pid}/task/{keeper.pid}/children").read_text().split()[0]
    enter = ["nsenter", "--user", "--mount", "--pid", "--preserve-credentials", "--target", inside]
    return keeper, [*enter, "sh", str(JAIL), str(root), cpu, qemu]


def write_entry(path, enter):
    """The program that every connection runs: what ssh was asked to run, in the jail."""
    line = " ".join(f"'{word}'" for word in enter)
    paths = ":".join(f"/opt/checkout/{name}" for name in SOURCES) + ":/opt/site"
    path.write_text(
        f'#!/bin/sh\nexport EMULATED_PYTHONPATH={paths}\nexec {line} sh -c "$SSH_ORIGINAL_COMMAND"\n'
    )
    path.chmod(0o755)


def main(root, cpu, qemu, work):
    if SSHD is None or shutil.which("ssh") is None:
        print(f"SKIPPED: the fleet page of two architectures: {WITHOUT_SSHD}", file=sys.stderr)
        return 5
    work.mkdir(parents=True, exist_ok=True)
    bundle = make_bundle(work)
    (root / "opt/env/bin").mkdir(parents=True, exist_ok=True)
    if not (root / "opt/env/bin/python").is_symlink():
        (root / "opt/env/bin/python").symlink_to("/usr/bin/python3")
    described = root / f"opt/site/edgekiln-{__version__}.dist-info"  # sbom.py asks
    described.mkdir(exist_ok=True)
    (described / "METADATA").write_text(f"Metadata-Version: 2.1\nName: edgekiln\nVersion: {__version__}\n")
    shutil.rmtree(root / "root/.edgekiln-device", ignore_errors=True)
    for old in (work / "fleet", work / "ssh", work / "devices.toml"):
        shutil.rmtree(old) if old.is_dir() else old.unlink(missing_ok=True)
    keeper, enter = open_jail(root, cpu, qemu)
    try:
        with running_sshd(work / "ssh") as server:
            write_entry(work / "ssh/enter", enter)
            key = (work / "ssh/key.pub").read_text()
            (work / "ssh/authorized_keys").write_text(f'command="{work}/ssh/enter" {key}')
            return measure(server, bundle, work)
    finally:
        keeper.stdin.close()
        keeper.wait()


def measure(server, bundle, work):
    devices = ("--devices", work / "devices.toml")
    edgekiln(
        "device", "add", "arm", "device", "--ssh-config", server.config, "--environment", "/opt/env", *devices
    )
    rows = edgekiln("device", "check", "arm", *devices, codes=(0, 5))  # 5: it has no TensorRT, say
    for row in rows["rows"]:
        print("     ", row["state"], row["name"], row["found"][:100])
    start = time.monotonic()
    fleet = work / "fleet"
    edgekiln("bench", bundle, "--data", work / "pictures", "--on", "arm,here", "--out", fleet, *devices)
    print(f"     benched on both in {time.monotonic() - start:.0f} s")
    document = edgekiln("fleet", fleet, "--require", "arm", "--out", work / "fleet.html")
    arm, here = document["devices"]
    wrong = [
        *(
            []
            if arm["emulated_on"] == "x86_64" and arm["machine"]["system"] == "Linux aarch64"
            else ["not emulated"]
        ),
        *([] if arm["passing"] == here["passing"] == ["fp32", "int8"] else ["not the same pass"]),
        *([] if not any(v["latency"] or v["speedup"] for v in arm["variants"]) else ["a time of it is told"]),
        *([] if all(v["latency"] for v in here["variants"]) else ["no time of this machine"]),
    ]
    for entry in document["differences"]:
        print(
            f"{'ok  ' if not entry['answers'] else 'FAIL'} {entry['variant']}: {len(entry['answers'])} of "
            f"{entry['images']} answers differ, logits up to {entry['max_logit_difference']:.2g} apart"
        )
        wrong += ["answers differ"] if entry["answers"] or entry["images"] != 30 else []
    print(f"{'FAIL ' + ', '.join(wrong) if wrong else 'ok  '} {work / 'fleet.html'}")
    return int(bool(wrong))


if __name__ == "__main__":
    os.chdir(Path(__file__).parents[2])
    sys.exit(main(Path(sys.argv[1]), sys.argv[2], sys.argv[3], Path(sys.argv[4])))
