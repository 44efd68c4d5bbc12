"""Finding TensorRT: which of its distributions, what is said where there is none, and the log of the library."""

import contextlib
import gc
import importlib
import logging
import struct
import subprocess
import sys
import threading
from types import ModuleType

import pytest
from fake_cuda import FakeCuda
from fake_tensorrt import FakeTensorRT, Severity

from edgekiln.runtime.backends import tensorrt_library
from edgekiln.runtime.backends.tensorrt_library import (
    LibraryLog,
    import_tensorrt,
    library_log,
    refuse_hollow,
    start_library,
)
from edgekiln.runtime.cuda import probe_driver
from edgekiln.runtime.errors import DeviceError, EnvironmentProblem, ExitCode, MissingExtraError

NAMES = ("tensorrt", "tensorrt_lean", "tensorrt_rtx")


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Puts packages on the path, in place of all that are installed."""
    real = importlib.util.find_spec
    placed = set()
    monkeypatch.setattr(
        tensorrt_library.importlib.util,
        "find_spec",
        lambda name: real(name) if name not in NAMES or name in placed else None,
    )
    monkeypatch.syspath_prepend(tmp_path)
    for name in NAMES:
        monkeypatch.delitem(sys.modules, name, raising=False)

    def place(name, source="__version__ = '10.3.0'\n"):
        (tmp_path / f"{name}.py").write_text(source)
        placed.add(name)
        importlib.invalidate_caches()

    yield place
    for name in placed:
        sys.modules.pop(name, None)


@pytest.mark.parametrize(
    ("there", "flavour", "to_build", "found"),
    [
        (("tensorrt",), "tensorrt", True, "tensorrt"),
        (("tensorrt", "tensorrt_lean"), "tensorrt", False, "tensorrt"),
        (("tensorrt_lean",), "tensorrt", False, "tensorrt_lean"),
        (("tensorrt", "tensorrt_rtx"), "tensorrt-rtx", True, "tensorrt_rtx"),
        (("tensorrt", "tensorrt_rtx"), "tensorrt-rtx", False, "tensorrt_rtx"),
    ],
)
def test_the_right_distribution_is_imported(install, there, flavour, to_build, found):
    for name in there:
        install(name)
    module = import_tensorrt(flavour, to_build=to_build)
    assert (module.__name__, module.__version__) == (found, "10.3.0")


@pytest.mark.parametrize(
    ("there", "flavour", "to_build", "message", "hint"),
    [
        ((), "tensorrt", True, r"tensorrt is not installed \(tensorrt\)", "sudo apt install nvidia-jetpack"),
        ((), "tensorrt", False, r"not installed \(tensorrt, tensorrt_lean\)", "pip install 'edgekiln[lean]'"),
        (
            ("tensorrt_lean",),
            "tensorrt",
            True,
            r"tensorrt is not installed \(tensorrt\)",
            "'edgekiln[tensorrt]'",
        ),
        (
            ("tensorrt",),
            "tensorrt-rtx",
            False,
            r"tensorrt-rtx is not installed \(tensorrt_rtx\)",
            "edgekiln[rtx]",
        ),
    ],
)
def test_what_is_missing_is_told_with_the_remedy(install, there, flavour, to_build, message, hint):
    for name in there:
        install(name)
    with pytest.raises(MissingExtraError, match=message) as caught:
        import_tensorrt(flavour, to_build=to_build)
    assert caught.value.exit_code == ExitCode.ENVIRONMENT
    assert hint.replace("pip install ", "") in caught.value.hint


@pytest.mark.parametrize(
    ("source", "told"),
    [
        (
            "raise OSError('libnvinfer.so.10: cannot open shared object file')",
            "OSError: libnvinfer.so.10: cannot",
        ),
        ("raise RuntimeError('no CUDA runtime')", "RuntimeError: no CUDA runtime"),
        ("import no_such_module_of_tensorrt", "ModuleNotFoundError: No module named 'no_such_module"),
    ],
)
def test_a_distribution_that_does_not_import_is_told_and_no_other_is_taken(install, source, told):
    install("tensorrt", source)
    install("tensorrt_lean")
    with pytest.raises(
        EnvironmentProblem, match="tensorrt is installed and cannot be imported: " + told
    ) as caught:
        import_tensorrt("tensorrt", to_build=False)
    assert not isinstance(caught.value, MissingExtraError)
    assert "install it again" in caught.value.hint
    assert caught.value.__cause__ is not None


# -------------------------------------------------------------------------------------------------- the log


@pytest.fixture
def trt():
    return FakeTensorRT(FakeCuda(), "10.3").module


def test_the_log_keeps_everything_but_verbose_in_order(trt):
    log = LibraryLog(trt)
    log.logger.log(Severity.ERROR, "before")
    mark = log.mark()
    for severity in (
        Severity.INFO,
        Severity.VERBOSE,
        Severity.WARNING,
        Severity.INTERNAL_ERROR,
        Severity.ERROR,
    ):
        log.logger.log(severity, f"a text of {severity.name}")
    assert log.since(mark) == [
        (name, f"a text of {name}") for name in ("INFO", "WARNING", "INTERNAL_ERROR", "ERROR")
    ]
    assert log.errors_since(mark) == "a text of INTERNAL_ERROR | a text of ERROR"
    assert log.since(0)[0] == ("ERROR", "before")


def test_silence_of_the_library_is_told_as_such(trt):
    log = LibraryLog(trt)
    log.logger.log(Severity.WARNING, "no error")
    assert log.errors_since(0) == "the library gave no reason"


def test_the_log_forgets_the_oldest_and_marks_stay_right(trt, monkeypatch):
    monkeypatch.setattr(tensorrt_library, "_KEPT_LINES", 3)
    log = LibraryLog(trt)
    for number in range(5):
        log.logger.log(Severity.INFO, str(number))
    mark = log.mark()
    log.logger.log(Severity.ERROR, "5")
    assert [text for _, text in log.since(0)] == ["3", "4", "5"]
    assert log.since(mark) == [("ERROR", "5")]


def test_threads_lose_no_line(trt):
    log = LibraryLog(trt)

    def write():
        for number in range(500):
            log.logger.log(Severity.INFO, str(number))

    threads = [threading.Thread(target=write) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert log.mark() == len(log.since(0)) == 2000


def test_a_destructor_that_logs_while_a_line_is_kept_or_read_does_not_hang(trt):
    class Lines(list):  # the collector may run at any allocation, and with it a destructor of the library's
        def append(self, line):
            if len(self) < 2:
                super().append(line)
                log.logger.log(Severity.ERROR, "from a destructor")

        def copy(self):
            log.logger.log(Severity.ERROR, "from a destructor")
            return super().copy()

    log = LibraryLog(trt)
    log._lines = Lines()

    def use():
        log.logger.log(Severity.INFO, "a line")
        found.extend(log.since(0))
        found.append(log.has_own_errors(0))

    found = []
    thread = threading.Thread(target=use, daemon=True)
    thread.start()
    thread.join(20)
    assert not thread.is_alive()
    assert found == [("INFO", "a line"), ("ERROR", "from a destructor"), True]


def test_a_library_has_one_log_however_many_threads_ask(trt, monkeypatch):
    barrier, together, found, made = threading.Barrier(8), threading.Barrier(2), [], []
    original = LibraryLog.__init__

    def count(self, module):
        made.append(module)
        with contextlib.suppress(threading.BrokenBarrierError):
            together.wait(0.1)  # long enough for a second maker, where one is let in
        original(self, module)

    def ask():
        barrier.wait(20)
        found.append(library_log(trt))

    monkeypatch.setattr(LibraryLog, "__init__", count)
    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert made == [trt]
    assert len(found) == 8
    assert len(set(map(id, found))) == 1
    assert library_log(trt) is found[0]
    assert library_log(FakeTensorRT(FakeCuda(), "rtx").module) is not found[0]


def test_the_logger_is_one_of_the_librarys_own(trt):
    assert isinstance(trt, ModuleType)
    assert isinstance(LibraryLog(trt).logger, trt.ILogger)


@pytest.fixture
def told(caplog):
    """What went to the logger ``edgekiln.runtime``, as (level, text)."""
    caplog.set_level("INFO", "edgekiln.runtime")
    return lambda: [(record.levelname, record.getMessage()) for record in caplog.records]


def test_warnings_are_told_once_each_and_only_where_a_session_asks(trt, told):
    log = LibraryLog(trt)
    log.logger.log(Severity.WARNING, "of a build")
    log.tell_warnings()
    for text in ("weights are slow", "weights are slow", "other GPU"):
        log.logger.log(Severity.WARNING, text)
    log.logger.log(Severity.INFO, "chatter")
    log.logger.log(Severity.ERROR, "is raised where it happens")
    log.tell_warnings()  # by a second session
    log.logger.log(Severity.WARNING, "other GPU")
    assert told() == [("WARNING", f"{trt.__name__}: {text}") for text in ("weights are slow", "other GPU")]
    assert len(log.since(0)) == 7


def test_warnings_that_never_repeat_end(trt, told, monkeypatch):
    monkeypatch.setattr(tensorrt_library, "_TOLD_WARNINGS", 3)
    log = LibraryLog(trt)
    log.tell_warnings()
    for number in range(10):
        log.logger.log(Severity.WARNING, f"number {number}")
    log.tell_warnings()
    log.logger.log(Severity.WARNING, "number 10")
    assert len(told()) == 3


def test_a_handler_that_raises_does_not_reach_the_library(trt):
    def refuse(record):
        raise RuntimeError("a filter of the product")

    logger = logging.getLogger("edgekiln.runtime")
    logger.addFilter(refuse)
    try:
        log = LibraryLog(trt)
        log.tell_warnings()
        log.logger.log(Severity.WARNING, "is kept all the same")
    finally:
        logger.removeFilter(refuse)
    assert log.since(0) == [("WARNING", "is kept all the same")]


# ----------------------------------------------------------------------------------- objects around nothing

NO_CUDA = "createInferRuntime: Error Code 6: API Usage Error (CUDA initialization failure with error: 35)"


@pytest.mark.parametrize("flavour", ["10.3", "11.4", "rtx"])
def test_a_hollow_object_is_refused_and_neither_used_nor_freed(flavour):
    library = FakeTensorRT(FakeCuda(), flavour)
    library.no_cuda = NO_CUDA
    log = library_log(library.module)
    with pytest.raises(DeviceError, match=r"does not start: .*failure with error: 35.*nvidia-smi"):
        start_library(library.module, log, lambda: library.module.Runtime(log.logger))
    gc.collect()
    assert library.hollow_freed == 0


def test_a_library_that_says_no_error_starts(trt):
    log = library_log(trt)
    log.logger.log(Severity.ERROR, "of something before")

    def make():
        log.logger.log(Severity.WARNING, "no error")
        other = threading.Thread(target=log.logger.log, args=(Severity.ERROR, "of another thread's work"))
        other.start()
        other.join()
        return "made"

    assert start_library(trt, log, make) == "made"


def test_a_driver_that_is_too_old_is_told_with_both_versions(trt, monkeypatch):
    monkeypatch.setattr(tensorrt_library, "supported_cuda", lambda: (12, 6))
    monkeypatch.setattr(
        tensorrt_library, "needed_cuda", lambda name: (13, 0) if name == trt.__name__ else None
    )
    log = library_log(trt)

    def make(words):
        log.logger.log(Severity.ERROR, words)

    with pytest.raises(
        DeviceError, match=r"CUDA 13\.0 or later; the driver .* up to 12\.6\. It says: "
    ) as caught:
        start_library(trt, log, lambda: make(NO_CUDA))
    assert "Update the driver" in caught.value.hint
    with pytest.raises(DeviceError, match="does not start: CUDA failure 100"):  # not a matter of age
        start_library(trt, log, lambda: make("CUDA failure 100: no CUDA-capable device is detected"))


@pytest.mark.parametrize(
    ("words", "kind"), [(NO_CUDA, DeviceError), ("no reason that is known", EnvironmentProblem)]
)
def test_a_null_pointer_is_told_in_the_words_of_the_library(trt, words, kind):
    log = library_log(trt)

    def make():
        log.logger.log(Severity.ERROR, words)
        raise TypeError("pybind11::init(): factory function returned nullptr")

    with pytest.raises(EnvironmentProblem, match=r"10\.3\.0 does not start: pybind11::init") as caught:
        start_library(trt, log, make)
    assert type(caught.value) is kind
    assert words in caught.value.message


class pybind11_type(type):  # the bindings' own name
    """As the bindings' metaclass: what is behind an object's header is an address."""


def wrap(address):
    """An object with that number where pybind11 keeps an address: a float keeps its 8 bytes there."""
    return pybind11_type("Wrapper", (float,), {})(struct.unpack("<d", struct.pack("<Q", address))[0])


def test_an_address_in_the_first_page_is_no_object():
    count = sys.getrefcount(hollow := wrap(0x228))
    assert refuse_hollow(hollow) is None
    assert sys.getrefcount(hollow) == count + 1  # kept for ever
    assert refuse_hollow(wrap(0)) is None
    whole = wrap(0x7F00_0000_1000)
    assert refuse_hollow(whole) is whole
    assert refuse_hollow(None) is None
    assert refuse_hollow(trt := object()) is trt


LEAN = """
import tensorrt_lean as trt
from edgekiln.runtime.backends.tensorrt_engine import create_runtime
from edgekiln.runtime.backends.tensorrt_library import library_log
from edgekiln.runtime.errors import DeviceError
try:
    create_runtime(trt, library_log(trt))
except DeviceError as error:
    print("refused:", error.message)
"""


def test_the_real_lean_runtime_does_not_end_the_process():
    if importlib.util.find_spec("tensorrt_lean") is None:
        pytest.skip("tensorrt_lean is not installed.")
    if probe_driver().problem is None:
        pytest.skip("There is a GPU here, on which it starts.")
    ran = subprocess.run(
        [sys.executable, "-c", LEAN], check=False, capture_output=True, text=True, timeout=100
    )
    assert (ran.returncode, ran.stderr) == (0, "")
    assert "refused: tensorrt_lean" in ran.stdout
