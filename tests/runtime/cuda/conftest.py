"""The fake driver library, compiled; and a driver on it that writes down its calls and fails where it is told to."""

import ctypes
import functools
import shutil
from pathlib import Path

import pytest
from null_driver import NullDriver, build_driver

from edgekiln.runtime.cuda.driver import Driver, require_device
from edgekiln.runtime.cuda.libcuda import LibcudaApi

_LAUNCH_FAILED = 719
_MAKES = {
    "event": ("cuEventCreate", "cuEventDestroy_v2"),
    "executable": ("cuGraphInstantiateWithFlags", "cuGraphExecDestroy"),
    "graph": ("cuStreamEndCapture", "cuGraphDestroy"),
    "pinned memory": ("cuMemHostAlloc", "cuMemFreeHost"),
    "stream": ("cuStreamCreate", "cuStreamDestroy_v2"),
}


@pytest.fixture(scope="session")
def fake_libcuda(tmp_path_factory):
    """Compiles the fake driver library with the macros given, once; gives the path of a copy with its own state."""
    # The copies stay to the end: the loader takes a new file with the inode of a deleted one for the library of that.
    compile_once = functools.cache(lambda *macros: build_driver(tmp_path_factory.mktemp("libcuda"), *macros))

    def build(*macros):
        return str(shutil.copy(compile_once(*macros), tmp_path_factory.mktemp("libcuda")))

    return build


@pytest.fixture(scope="session")
def fake_driver_path(fake_libcuda):
    """The fake driver library without macros."""
    return fake_libcuda()


@pytest.fixture(scope="session")
def null_driver(fake_driver_path, tmp_path_factory) -> NullDriver:
    """The fake driver library in the place of the system's, for processes of their own."""
    return NullDriver(Path(fake_driver_path), tmp_path_factory.mktemp("null_driver"))


@pytest.fixture(scope="session")
def model_file(mean_model, tmp_path_factory) -> str:
    """The ONNX model whose logits are the means of a picture's channels."""
    path = tmp_path_factory.mktemp("model") / "mean.onnx"
    path.write_bytes(mean_model)
    return str(path)


class WatchedDriver(Driver):
    """A driver whose calls are written down.

    Attributes:
        calls: names of the functions that were called, in order.
        failing: names of the functions that fail from now on; they do nothing else.
        scheduling: flags of the primary context.
        busy_queries: how often ``cuStreamQuery`` still says that the stream is not done.
    """

    def __init__(self, path):
        super().__init__(path)
        self.calls, self.failing, self.scheduling, self.busy_queries = [], set(), 0, 0

    def _function(self, name):
        real = super()._function(name)

        def call(*arguments):
            self.calls.append(name)
            if name in self.failing:
                return _LAUNCH_FAILED
            if name == "cuDevicePrimaryCtxGetState":
                flags = ctypes.cast(arguments[1], ctypes.POINTER(ctypes.c_uint))
                flags[0] = self.scheduling
                return 0
            if name == "cuStreamQuery" and self.busy_queries:
                self.busy_queries -= 1
                return 600
            return real(*arguments)

        return call

    def left_over(self):
        """What was made and not destroyed, by kind. A destroy that was told to fail counts as one."""
        counts = {
            kind: self.calls.count(make) - self.calls.count(end) for kind, (make, end) in _MAKES.items()
        }
        return {kind: count for kind, count in counts.items() if count}


@pytest.fixture
def watched_driver(fake_libcuda):
    """A ``WatchedDriver`` on a copy of the fake driver library: what a test breaks in it stays there."""
    driver = WatchedDriver(fake_libcuda())
    driver.initialize()
    return driver


@pytest.fixture
def libcuda(watched_driver, fake_driver_path):
    """``LibcudaApi`` on the watched driver; it is not closed, since tests break it."""
    return LibcudaApi(0, require_device(0, fake_driver_path), watched_driver)
