"""Objects that wrap a null pointer: the process that meets one lives, and says that it is the driver."""

import os
import subprocess
import sys

import pytest
from tests_support import ROOT

# As a product would: an object is made, refused, and everything is dropped again, also at the end of the process.
CODE = """
import fake_tensorrt_builder as trt
from edgekiln.runtime.backends.tensorrt_library import library_log, start_library
from edgekiln.runtime.errors import EnvironmentProblem
log = library_log(trt)
def make():
    try:
        return start_library(trt, log, lambda: trt.{name}(log.logger))
    except EnvironmentProblem as error:
        print(error)
print(make() is None)
"""


def run(name, faults):
    environment = os.environ | {
        "FAKE_TENSORRT_FAULTS": faults,
        "PYTHONPATH": os.pathsep.join([str(ROOT / "tests"), *filter(None, sys.path)]),
    }
    return subprocess.run(
        [sys.executable, "-c", CODE.format(name=name)],
        check=False,
        env=environment,
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize("name", ["Builder", "Runtime", "OnnxParser"])
def test_object_around_a_null_pointer_is_refused_and_never_dropped(name):
    done = run(name, name)
    assert (done.returncode, done.stderr) == (0, "")
    assert "fake_tensorrt_builder 10.16.1.11 does not start: createInfer: Error Code 6" in done.stdout
    assert "update the driver, or install the library for that CUDA" in done.stdout
    assert done.stdout.endswith("True\n")


def test_null_pointer_that_the_bindings_see_is_the_same_error():
    done = run("Runtime", "Runtime:type-error")
    assert (done.returncode, done.stderr) == (0, "")
    assert "does not start: pybind11::init(): factory function returned nullptr" in done.stdout


def test_object_that_is_one_is_given():
    assert run("Runtime", "").stdout == "False\n"


def test_the_fake_kills_who_drops_its_null_object():
    code = "import fake_tensorrt_builder as trt; trt.Runtime(trt.ILogger())"
    environment = os.environ | {"FAKE_TENSORRT_FAULTS": "Runtime", "PYTHONPATH": str(ROOT / "tests")}
    assert subprocess.run([sys.executable, "-c", code], check=False, env=environment).returncode == -11
