"""What a build's end means. Real failures of the real library are in ``test_tensorrt``."""

import signal

import pytest

from edgekiln.export.engines.failures import explain_death, explain_failure
from edgekiln.export.engines.options import BuildOptions
from edgekiln.runtime.errors import (
    BuildError,
    DeviceError,
    DeviceLostError,
    EnvironmentProblem,
    ResourceError,
)
from edgekiln.runtime.spec import Precision

OPTIONS = BuildOptions("tensorrt-rtx", Precision.INT8)


@pytest.mark.parametrize(
    ("code", "error", "words"),
    [
        (-signal.SIGKILL, ResourceError, "when memory runs out"),
        (-signal.SIGSEGV, BuildError, r"crashed while building \(SIGSEGV\). the last line"),
        (-200, BuildError, r"crashed while building \(signal 200\)"),
        (3, EnvironmentProblem, "exit code 3: the last line"),
    ],
)
def test_how_the_process_ended_says_whose_fault_it_was(code, error, words):
    with pytest.raises(error, match=words):
        raise explain_death(code, "first line\nthe last line\n")


@pytest.mark.parametrize(
    ("words", "cause"),
    [
        ("Could not find any implementation for node /a/Conv", "memory, node /a/Conv"),
        ("FP32 GEMM is not supported on this architecture", "type unsupported on this SM"),
        ("CUDA initialization failure with error 35", "driver"),
        ("something new", "build"),
    ],
)
def test_the_librarys_words_give_the_likely_cause(words, cause):
    told = {"failure": "build", "node": None, "log": [["INFO", "begun"], ["ERROR", words]]}
    failure = explain_failure(told, OPTIONS, None)
    assert str(failure).startswith(
        f"tensorrt-rtx could not build the int8 engine without a GPU ({cause}): {words}"
    )


def test_a_cancelled_build_is_an_interrupt():
    told = {"failure": "cancelled", "node": None, "log": []}
    assert isinstance(explain_failure(told, OPTIONS, None), KeyboardInterrupt)


@pytest.mark.parametrize("kind", [DeviceError, DeviceLostError, EnvironmentProblem, ResourceError])
def test_a_library_that_did_not_start_is_the_error_that_it_was_in_the_child(kind):
    told = {
        "failure": "start",
        "problem": "no start",
        "hint": "do this",
        "code": kind.code,
        "node": None,
        "log": [],
    }
    failure = explain_failure(told, OPTIONS, None)
    assert type(failure) is kind
    assert (failure.message, failure.hint) == ("no start", "do this")


def test_a_builder_that_ended_without_a_word_has_a_remedy():
    assert "--debug" in explain_death(3, "").hint
