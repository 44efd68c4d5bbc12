"""No network: every stage and every call of the runtime, in processes that watch each of their sockets.

Two guards: an audit hook, which Python code cannot take back and which says who asked, and a preloaded library, which
sees what others open in C. Neither sees a statically linked program.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tests_support import TINY_RECIPE, write_pictures

GUARD = """
import os, socket, sys

WATCHED = {"socket.connect", "socket.sendto", "socket.sendmsg", "socket.getaddrinfo", "socket.gethostbyname",
           "socket.gethostbyaddr", "socket.getnameinfo"}
LOG = os.open(os.environ["NETWORK_GUARD_LOG"], os.O_WRONLY | os.O_APPEND)
STARTED = os.open(os.environ["NETWORK_GUARD_LOG"] + ".started", os.O_WRONLY | os.O_APPEND)
os.write(STARTED, b"%d\\n" % os.getpid())

def watch(event, arguments):
    if event not in WATCHED:
        return
    if isinstance(arguments[0], socket.socket) and arguments[0].family == socket.AF_UNIX:
        return
    os.write(LOG, f"{event} {arguments[1:]} in {sys.argv}\\n".encode())
    raise OSError(f"{event}: no network here")

sys.addaudithook(watch)
"""

CONTROL = """
import socket, subprocess, sys
left, right = socket.socketpair()  # between processes of one machine
left.sendmsg([b"x"])
if "child" not in sys.argv:
    subprocess.run([sys.executable, sys.argv[0], "child"], check=True)
for attempt in (
    lambda: socket.socket().connect(("127.0.0.1", 9)),
    lambda: socket.getaddrinfo("example.org", 443),
    lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"x", ("127.0.0.1", 9)),
):
    try:
        attempt()
    except OSError as error:
        assert "no network here" in str(error), error
    else:
        raise SystemExit("the guard let it pass")
"""

STAGES = """
import sys
from edgekiln.pipeline.cli import cli

def call(*arguments):
    cli.main([str(a) for a in arguments], standalone_mode=False)

recipe, runs, bundle, picture = sys.argv[1:]
quick = ["benchmark.enabled=true", "benchmark.processes=2", "benchmark.blocks=2", "benchmark.images=4",
         "benchmark.side_blocks=1", "gate.inconclusive=warn", "gate.max_drop=0.9"]
call("run", recipe, "--runs", runs, "--quiet", *(word for key in quick for word in ("--set", key)))
call("keygen", "--out", f"{runs}/k")
call("sign", bundle, "--key", f"{runs}/k.key")
call("archive", bundle, "--out", f"{runs}/b.zip")
for path in (bundle, f"{runs}/b.zip"):
    call("verify", path, "--pub", f"{runs}/k.pub")
    call("inspect", path)
    call("predict", path, picture, "--trusted-key", f"{runs}/k.pub")
call("inspect", f"{bundle}/int8.onnx")
call("report", bundle, "--out", f"{runs}/report.html")
call("compare", bundle, bundle)
call("cache", "ls")
call("pack", bundle, "--triton", f"{runs}/models")

import asyncio
import numpy as np
from PIL import Image
import edgekiln.runtime as ek

with ek.load(f"{runs}/b.zip", trusted_keys=[f"{runs}/k.pub"], variant="int8", threads=1) as classifier:
    classifier.warm_up()
    image = Image.open(picture)
    with open(picture, "rb") as file:
        pictures = [picture, file.read(), image, np.asarray(image)]
    for one in pictures:
        classifier.predict(one).top(2)
    classifier.predict_batch(pictures)
    frames = np.stack([ek.prepare(one, classifier.contract) for one in pictures])
    classifier.session.run(frames)
    streamed = list(classifier.predict_stream([*pictures, b"no picture"]))
    assert [type(answer).__name__ for answer in streamed] == ["Prediction"] * 4 + ["ImageError"]
    with ek.Batcher(classifier, max_batch=2) as batcher:
        batcher.submit(picture).result()
        classifier.reload(f"{runs}/b.zip")
        asyncio.run(batcher.predict_async(picture))
        batcher.read_counters()
try:
    ek.load(bundle, device="cuda", variant="int8")
except ek.EdgekilnError as error:
    print(error)
"""


NATIVE = """
import ctypes, socket, struct
libc = ctypes.CDLL(None)
address = struct.pack("=HH4s8x", socket.AF_INET, socket.htons(9), socket.inet_aton("127.0.0.1"))
descriptor = socket.socket().detach()
assert libc.connect(descriptor, address, len(address)) == -1
assert libc.sendto(descriptor, b"x", 1, 0, address, len(address)) == -1
assert libc.getaddrinfo(b"example.org", None, None, None) != 0
"""

# Opt-outs that conftest.py sets for the suite: here the product has to set them itself.
OPT_OUTS = {"ORT_DISABLE_TELEMETRY", "HF_HUB_DISABLE_TELEMETRY"}


@pytest.fixture(scope="module")
def native_guard(tmp_path_factory):
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler here: what libraries open in C could not be seen")
    library = tmp_path_factory.mktemp("guard") / "network_guard.so"
    source = Path(__file__).with_name("network_guard.c")
    subprocess.run([compiler, "-shared", "-fPIC", "-Wall", "-Werror", "-o", library, source], check=True)
    return library


@pytest.fixture
def guarded(tmp_path, native_guard):
    """Runs Python text in a guarded process; returns its output, the attempts, and how many processes there were."""
    guard, log = tmp_path / "guard", tmp_path / "attempts"
    guard.mkdir()
    (guard / "sitecustomize.py").write_text(GUARD)
    started = log.with_name("attempts.started")

    def run(text, *arguments):
        log.write_text("")
        started.write_text("")
        script = tmp_path / "script.py"
        script.write_text(text)
        environment = {
            **{name: value for name, value in os.environ.items() if name not in OPT_OUTS},
            "LD_PRELOAD": str(native_guard),
            "NETWORK_GUARD_LOG": str(log),
            "PYTHONPATH": os.pathsep.join([str(guard), os.environ.get("PYTHONPATH", "")]),
        }
        done = subprocess.run(
            [sys.executable, str(script), *map(str, arguments)],
            capture_output=True,
            text=True,
            env=environment,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-4000:]
        return done.stdout, log.read_text(), len(started.read_text().split())

    return run


def test_the_guard_sees_attempts_here_and_in_child_processes(guarded):
    _, attempts, processes = guarded(CONTROL)
    assert processes == 2
    for event in ("socket.connect ", "socket.getaddrinfo ", "socket.sendto "):
        assert attempts.count(event) >= 2
    assert "child" in attempts


def test_the_guard_sees_attempts_from_c(guarded):
    _, attempts, _ = guarded(NATIVE)
    assert attempts.split("\n") == ["native connect", "native sendto", "native getaddrinfo", ""]


@pytest.mark.slow
def test_no_stage_and_no_call_asks_for_a_network(guarded, tmp_path):
    picture = write_pictures(tmp_path / "pictures") / "red" / "003.png"
    fp32 = '[[variants]]\nname = "fp32"\nprecision = "fp32"\n'  # left out: one engine less to start
    (tmp_path / "tiny.toml").write_text(TINY_RECIPE.replace("enabled = false", "").replace(fp32, ""))
    bundle = tmp_path / "runs" / "tiny" / "bundle"
    output, attempts, processes = guarded(STAGES, tmp_path / "tiny.toml", tmp_path / "runs", bundle, picture)
    assert attempts == ""
    assert processes > 3  # the benchmark's workers were watched too
    assert json.loads((bundle / "report.json").read_text())["benchmark"] is not None
    assert output.count(f"{picture}  red") == 2
