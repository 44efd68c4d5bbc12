"""What runs on the driver without a device, in a process that finds it as ``libcuda.so.1``; see ``null_driver``.

What is real here: edgekiln's CUDA layers and its ``TensorRTSession``, PyCUDA, ctypes. What is not: the driver, and the
engine library (``fake_tensorrt``, which answers with onnxruntime), whose runs are functions of the host on the driver's
own streams, and reach the device's memory only through it.
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import gc
import json
import logging
import os
import signal
import struct
import sys
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from ctypes import CFUNCTYPE, POINTER, byref, c_char_p, c_int, c_size_t, c_uint8, c_void_p
from pathlib import Path
from typing import Any

import fake_tensorrt
import numpy as np
from fake_tensorrt import FakeTensorRT, FakeTensorRTFault, make_engine
from null_driver_mistakes import MISTAKES

from edgekiln.runtime.backends.tensorrt import TensorRTSession
from edgekiln.runtime.cuda import open_cuda
from edgekiln.runtime.errors import EdgekilnError

KINDS = ("stream", "event", "graph", "executable", "device memory", "pinned memory")
HEIGHT, WIDTH, CLASSES = 4, 8, 3
_HOST_FUNCTION = CFUNCTYPE(None, c_void_p)
_kept: list[Any] = []  # functions that the driver may still call


def _load() -> Any:
    driver = ctypes.CDLL("libcuda.so.1")
    driver.fake_fail.argtypes = [c_char_p, c_int, c_int]
    driver.fake_failed.restype = driver.fake_complaint.restype = c_char_p
    driver.fake_calls.argtypes = driver.fake_live.argtypes = [c_char_p]
    driver.fake_reach.restype = c_void_p
    driver.fake_reach.argtypes = [c_void_p, c_size_t]
    driver.cuLaunchHostFunc.argtypes = [c_void_p, _HOST_FUNCTION, c_void_p]
    driver.cuStreamIsCapturing.argtypes = [c_void_p, POINTER(c_int)]
    return driver


driver = _load()


class Bridge:
    """What ``FakeTensorRT`` asks of its CUDA, on the driver itself.

    Attributes:
        faults: what the engine's runs raised, which a real engine would answer with a crash or wrong results.
    """

    def __init__(self) -> None:
        self.faults: list[BaseException] = []
        self._queues: dict[int, list[Any]] = {}  # the driver's own queues are not looked into

    @property
    def active(self) -> bool:
        """Whether a context is current in this thread."""
        return bool(driver.fake_depth())

    def enqueue(self, handle: int, work: Callable[[], None]) -> bool:
        """Put a run on a stream; ``False`` where the driver fails."""

        def call(_: Any) -> None:
            try:
                work()
            except BaseException as error:  # nothing may leave a function that C calls
                self.faults.append(error)

        _kept.append(_HOST_FUNCTION(call))
        return not int(driver.cuLaunchHostFunc(handle, _kept[-1], None))

    def is_capturing(self, handle: int) -> bool:
        """Whether the stream records."""
        status = c_int()
        return driver.cuStreamIsCapturing(handle, byref(status)) == 0 and status.value == 1

    def view(self, address: int, nbytes: int) -> Any:
        """The bytes at an address of the device."""
        real = driver.fake_reach(address, nbytes)
        if not real:
            raise FakeTensorRTFault(f"the device sees no {nbytes} bytes at {address:#x}")
        return np.ctypeslib.as_array((c_uint8 * nbytes).from_address(real))


# ------------------------------------------------------------------------------------------- the life of a session


class Life:
    """One session from the choice of a CUDA layer to its end, and what is to be seen behind it.

    Attributes:
        opened: whether CUDA was.
        told: (stage, error) of every error that edgekiln raised.
        warned: what it logged as a warning.
        foreign: as ``told``, every other exception.
    """

    def __init__(self, layer: str, flavour: str, model: bytes, wait: str = "spin") -> None:
        self.layer, self.flavour, self.model, self.wait = layer, flavour, model, wait
        self.opened = False
        self.told: list[tuple[str, str]] = []
        self.warned: list[str] = []
        self.foreign: list[str] = []
        self.bridge = Bridge()
        self.library = FakeTensorRT(self.bridge, flavour)  # type: ignore[arg-type]
        self._complaints = driver.fake_complaints()

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Keeps what is raised inside."""
        try:
            yield
        except EdgekilnError as error:
            self.told.append((name, f"{type(error).__name__}: {error.message}"))
        except Exception as error:
            self.foreign.append(f"{name}: {type(error).__name__}: {error}")

    def live(self, ranges: list[tuple[int, int]], slots: int, use: Callable[[TensorRTSession], None]) -> None:
        """Open CUDA and a session, use it, close both, whatever fails."""
        cuda: Any = None
        session: Any = None
        with self.stage("open cuda"):
            cuda = open_cuda(self.layer)  # type: ignore[arg-type]
        self.opened = cuda is not None
        with self.stage("open session"):
            session = cuda and TensorRTSession(
                [make_engine(self.model, self.flavour, batch) for batch in ranges],
                flavour="tensorrt-rtx" if self.flavour == "rtx" else "tensorrt",
                slots=slots,
                wait=self.wait,  # type: ignore[arg-type]
                cuda=cuda,
                trt=self.library.module,
            )
        with self.stage("use"):
            if session is not None:
                use(session)
        for name, opened in (("close session", session), ("close cuda", cuda)):
            with self.stage(name):
                if opened is not None:
                    opened.close()

    def problems(self) -> list[str]:
        """What should not be, now that it is over."""
        if +self.library.alive:
            gc.collect()  # a failure's traceback still holds what it was about
        left = {kind: count for kind in KINDS if (count := driver.fake_live(kind.encode()))}
        complaints = driver.fake_complaints() - self._complaints
        found = [f"foreign: {text}" for text in self.foreign]
        found += [f"the engine: {type(error).__name__}: {error}" for error in self.bridge.faults]
        found += [f"left: {left}"] if left else []
        found += [f"{complaints} wrong calls: {driver.fake_complaint().decode()}"] if complaints else []
        found += [f"contexts left current: {depth}"] if (depth := driver.fake_depth()) else []
        found += [f"alive: {dict(+self.library.alive)}"] if +self.library.alive else []
        unprotected = self.library.destroyed_unprotected
        found += [f"destroyed without a context: {unprotected}"] if unprotected else []
        return found


def frames_of(seed: int, count: int) -> Any:
    """Random pictures."""
    return np.random.default_rng((seed, count)).integers(0, 256, (count, HEIGHT, WIDTH, CLASSES), np.uint8)


def check(session: TensorRTSession, seed: int, count: int) -> None:
    """One batch, against the exact means."""
    frames = frames_of(seed, count)
    wanted = frames.mean(axis=(1, 2), dtype=np.float64).astype(np.float32)
    np.testing.assert_array_equal(session.run(frames), wanted)


# ----------------------------------------------------------------------------------------------------------- cases


def answers(layer: str, flavour: str, wait: str, model: str) -> list[str]:
    """A whole session: batches of all sizes, four threads, times; what is wrong with it."""

    def use(session: TensorRTSession) -> None:
        for count in (1, 2, 3, 4, 5, 8, 9, 20):
            check(session, 0, count)
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda task: check(session, *task), enumerate((1, 2, 3, 4, 8, 11) * 3)))
        assert all(ms >= 0 for ms in session.measure_device_ms(frames_of(1, 3), 3))

    life = Life(layer, flavour, Path(model).read_bytes(), wait)
    life.live([(1, 4), (8, 8)], 2, use)
    return [f"{stage}: {text}" for stage, text in life.told] + life.problems()


def mistaken(mistake: str | None, layer: str, flavour: str, model: str) -> list[str]:
    """A session with a mistake in the code that it runs; ``None``: without."""
    with MISTAKES[mistake]() if mistake else contextlib.nullcontext():
        return answers(layer, flavour, "spin", model)


def calls(layer: str, flavour: str, model: str) -> int:
    """How many calls of the driver ``fault`` can make fail: those of a life without a failure."""
    life, found = _live_briefly(layer, flavour, model)
    assert not life.told, life.told
    assert not found, found
    return int(driver.fake_calls(None))


def fault(
    layer: str,
    flavour: str,
    model: str,
    status: int,
    *,
    nth: int = 1,
    function: str = "",
    mistake: str | None = None,
) -> dict[str, Any]:
    """A short life whose ``nth`` call of the driver, or of a ``function`` of it, fails with ``status``.

    What the engine library destroys without a context is not told: the traceback of an error holds contexts of engines
    for as long as somebody holds the error. Nor is a context that stays current where its pop is what failed.

    Returns:
        ``function`` that failed; ``opened``: whether CUDA was; ``told``, ``warned``: by edgekiln; ``problems``: what
        should not be.
    """
    driver.fake_fail(function.encode(), nth, status)
    with MISTAKES[mistake]() if mistake else contextlib.nullcontext():
        life, found = _live_briefly(layer, flavour, model)
    function = driver.fake_failed().decode()
    if function == "cuCtxPopCurrent_v2":
        found = [text for text in found if text != "contexts left current: 1"]
    return {
        "function": function,
        "opened": life.opened,
        "told": life.told,
        "warned": life.warned,
        "problems": [text for text in found if not text.startswith("destroyed without a context")],
    }


def _live_briefly(layer: str, flavour: str, model: str) -> tuple[Life, list[str]]:
    def use(session: TensorRTSession) -> None:
        check(session, 0, 3)
        session.measure_device_ms(frames_of(1, 1), 1)

    life = Life(layer, flavour, Path(model).read_bytes(), "blocking")
    warnings = logging.Handler(logging.WARNING)
    warnings.emit = lambda record: life.warned.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("edgekiln").addHandler(warnings)
    life.live([(1, 2)], 1, use)
    return life, life.problems()


def real_library(flavour: str, version: list[int], magic: str) -> str:
    """Opens a session with the real library and an engine that is none; the error that edgekiln raised."""
    head = bytearray(64)
    head[:4] = magic.encode()
    head[24:28] = bytes(version)
    if flavour == "tensorrt-rtx":
        struct.pack_into("<I", head, 32, 0x3E)
    try:
        TensorRTSession([bytes(head) + bytes(1000)], flavour=flavour)  # type: ignore[arg-type]
    except EdgekilnError as error:
        return f"{type(error).__name__}: {error.message}"
    return "opened"


# ------------------------------------------------------------------------------------------------------ the process


def _run_in_fork(case: dict[str, Any]) -> dict[str, Any]:
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        with os.fdopen(writer, "w") as pipe:
            json.dump(_run(case), pipe)
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        text = pipe.read()
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return json.loads(text) if status == 0 else {"answer": None, "failure": f"signal {-status}"}


def _run(case: dict[str, Any]) -> dict[str, Any]:
    os.environ.update(case["settings"])
    signal.alarm(case["seconds"])  # a hang ends as signal 14
    try:
        return {"answer": globals()[case["function"]](**case["arguments"]), "failure": None}
    except BaseException:
        return {"answer": None, "failure": traceback.format_exc()}


def _prepare(cases: list[dict[str, Any]]) -> None:
    """Do once what all forks would do, and what starts no thread and asks no driver."""
    for model in {case["arguments"].get("model") for case in cases} - {None}:
        fake_tensorrt._load_model(Path(model).read_bytes())
    if any(case["arguments"].get("layer") == "pycuda" for case in cases):
        import pycuda.driver  # noqa: F401


def main() -> None:
    """Read cases from the standard input, and write their outcomes to the standard output."""
    faulthandler.enable()
    results = os.dup(1)
    os.dup2(2, 1)  # what libraries print is no result
    cases = json.load(sys.stdin)
    _prepare(cases)
    outcomes = [_run_in_fork(case) for case in cases]
    with os.fdopen(results, "w") as out:
        json.dump(outcomes, out)


if __name__ == "__main__":
    main()
