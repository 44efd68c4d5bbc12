"""The fake driver library, compiled; and a driver on it that writes down its calls and fails where it is told to."""

import ctypes
import shutil
import subprocess
from pathlib import Path

import pytest

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
    """Compiles the fake driver library with the macros given; gives its path."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("There is no C compiler.")
    source = Path(__file__).parent / "fake_libcuda.c"

    def build(*macros):
        path = tmp_path_factory.mktemp("libcuda") / "libcuda.so.1"
        options = ["-shared", "-fPIC", "-Wall", "-Wextra", "-Werror", *(f"-D{macro}" for macro in macros)]
        subprocess.run([compiler, *options, "-o", str(path), str(source)], check=True)
        return str(path)

    return build


@pytest.fixture(scope="session")
def fake_driver_path(fake_libcuda):
    """The fake driver library without macros."""
    return fake_libcuda()


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
def watched_driver(fake_driver_path, tmp_path):
    """A ``WatchedDriver`` on a copy of the fake driver library: what a test breaks in it stays there."""
    driver = WatchedDriver(shutil.copy(fake_driver_path, tmp_path / "libcuda_watched.so.1"))
    driver.initialize()
    return driver


@pytest.fixture
def libcuda(watched_driver, fake_driver_path):
    """``LibcudaApi`` on the watched driver; it is not closed, since tests break it."""
    return LibcudaApi(0, require_device(0, fake_driver_path), watched_driver)
