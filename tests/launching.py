"""Starts the command line many times without paying for its imports: a process that has them all forks, each time.

A child is a process (and process group) of its own, as a shell would start it: it can be killed, interrupted, limited
and moved to another user, and nothing of it comes back but its exit status. The parent never computes anything, so
that it has one thread, and a fork of it is a whole process.
"""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

SERVER = r"""
import gc, importlib, json, os, select, signal, sys

from edgekiln.runtime.telemetry import refuse_telemetry

refuse_telemetry()  # its thread, too, would be one too many
for name in json.loads(sys.argv[1]):
    importlib.import_module(name)
assert len(os.listdir("/proc/self/task")) == 1, "a fork would copy one thread of several"
gc.freeze()  # a fork's collector would touch, and so copy, all that was imported: over a second for each fork

def become(request):
    "What a shell does for a command, then what its interpreter does."
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for descriptor, path in ((0, os.devnull), (1, request["out"]), (2, request["log"])):
        os.dup2(os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666), descriptor)
    sys.stdin, sys.stdout, sys.stderr = (os.fdopen(n, m, **e) for n, m, e in (
        (0, "r", {}), (1, "w", {}), (2, "w", {"buffering": 1})))
    for key, value in request["environment"].items():
        os.environ.pop(key, None)
        if value is not None:
            os.environ[key] = value
    exec(request["setup"], {})
    from edgekiln.pipeline.cli import main
    sys.argv = ["edgekiln", *request["arguments"]]
    main()

def tell(**values):
    print(json.dumps(values), flush=True)

tell(ready=os.getpid())
requests, children = os.fdopen(0, "rb", buffering=0), set()
while True:
    if select.select([requests], [], [], 0.01 if children else None)[0]:
        line = requests.readline()
        if not line:
            break
        pid = os.fork()
        if not pid:
            become(json.loads(line))
        children.add(pid)
        tell(started=pid)
    for pid in list(children):
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            children.remove(pid)
            tell(ended=pid, code=os.waitstatus_to_exitcode(status))
os._exit(0)  # it has nothing to tidy up, and its libraries would take seconds
"""

MODULES = (
    "torch", "torchvision.transforms.v2", "timm", "onnx", "onnxruntime", "onnxruntime.quantization", "onnxscript",
    "torch.onnx", "torch.export", "torch._dynamo", "torch.onnx._internal.exporter._core", "jinja2",
    "torch.onnx._internal.exporter._torchlib.ops", "torch._inductor.codecache", "networkx", "onnxscript.rewriter",
    "safetensors.torch", "PIL.Image", "scipy",
    "edgekiln.pipeline.cli", "edgekiln.pipeline.run", "edgekiln.pipeline.training.finetune",
    "edgekiln.pipeline.proof.packing",
    "edgekiln.pipeline.training.checkpoint", "edgekiln.export.to_onnx", "edgekiln.export.precision.int8_cpu",
    "edgekiln.export.precision.sensitivity",
    "edgekiln.benchmarks.report", "onnxscript.function_libs.torch_lib.ops", "torch.export._trace",
)  # fmt: skip


@dataclass
class Launched:
    """A command that runs, or ran."""

    pid: int
    log: Path
    out: Path
    _launcher: "Launcher" = field(repr=False)
    code: int | None = None

    def send(self, number: int) -> None:
        """A signal to its whole process group, as a terminal sends it."""
        os.killpg(self.pid, number)

    def poll(self) -> int | None:
        """Its exit status where it ended; negative is the signal that ended it."""
        self._launcher.listen(0)
        return self.code

    def wait(self, timeout: float = 120) -> int:
        """Its exit status; negative is the signal that ended it."""
        end = time.monotonic() + timeout
        while self.code is None:
            assert time.monotonic() < end, f"still running: {self.log.read_text()}"
            self._launcher.listen(0.02)
        return self.code

    def wait_for(self, text: str, timeout: float = 120) -> bool:
        """Until it said ``text``; whether it did before it ended."""
        end = time.monotonic() + timeout
        while text not in self.log.read_text():
            if self.code is not None:
                return False
            assert time.monotonic() < end, f"never said {text!r}: {self.log.read_text()}"
            self._launcher.listen(0.002)
        return True


class Launcher:
    """``with Launcher() as launcher: launcher.start("run", recipe, log=path)``."""

    def __init__(self, modules=MODULES) -> None:
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_WAIT_POLICY": "PASSIVE"}
        environment |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            [sys.executable, "-c", SERVER, json.dumps(modules)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, start_new_session=True,
        )  # fmt: skip
        self._running: dict[int, Launched] = {}
        self._told = b""
        self._ready: dict | None = None
        os.set_blocking(self._process.stdout.fileno(), False)

    def start(self, *arguments, folder: Path, name="run", environment=None, setup="") -> Launched:
        """Start ``edgekiln ARGUMENTS``; what it prints goes to ``folder/NAME.out`` and ``folder/NAME.log``.

        Args:
            environment: variables to set, or with ``None`` to remove.
            setup: Python code that the child runs first, or alone where it ends by ``SystemExit``.
        """
        request = {
            "arguments": [str(a) for a in arguments], "environment": environment or {}, "setup": setup,
            "out": str(folder / f"{name}.out"), "log": str(folder / f"{name}.log"),
        }  # fmt: skip
        for key in ("out", "log"):
            Path(request[key]).write_text("")
        self._process.stdin.write(json.dumps(request).encode() + b"\n")
        self._process.stdin.flush()
        while (message := self._next(None)).keys() != {"started"}:
            self._note(message)
        launched = Launched(message["started"], Path(request["log"]), Path(request["out"]), self)
        self._running[launched.pid] = launched
        return launched

    def run(self, *arguments, **options) -> Launched:
        """Start, and wait for its end."""
        launched = self.start(*arguments, **options)
        launched.wait()
        return launched

    def listen(self, seconds: float) -> None:
        """Take in what ended meanwhile."""
        if (message := self._next(seconds)) is not None:
            self._note(message)

    def _note(self, message) -> None:
        if "ended" in message:
            self._running.pop(message["ended"]).code = message["code"]

    def _next(self, seconds):
        """The server's next message; ``None`` where none came in time."""
        end = None if seconds is None else time.monotonic() + seconds
        while b"\n" not in self._told:
            if chunk := self._process.stdout.read():
                self._told += chunk
                continue
            if end is not None and time.monotonic() >= end:
                return None
            assert self._process.poll() is None, "the server died"
            time.sleep(0.001)
        line, _, self._told = self._told.partition(b"\n")
        return json.loads(line)

    def __enter__(self):
        while (self._ready is None) or "ready" not in self._ready:
            self._ready = self._next(None)
        return self

    def __exit__(self, *_) -> None:
        for launched in list(self._running.values()):
            launched.send(signal.SIGKILL)
            launched.wait()
        self._process.stdin.close()
        self._process.wait(30)
        self._process.stdout.close()
