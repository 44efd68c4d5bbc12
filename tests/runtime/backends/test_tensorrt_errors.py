"""What TensorRT's words are taken for."""

import pytest
from fake_tensorrt import make_header
from gpu_support import is_for_another_gpu

from edgekiln.runtime.backends.cuda_words import OLD_DRIVER
from edgekiln.runtime.backends.engine_header import read_engine_header
from edgekiln.runtime.backends.tensorrt_errors import (
    REBUILD,
    convert_no_start,
    convert_refusal,
    refuse_foreign,
)
from edgekiln.runtime.errors import DeviceError, EngineError, EnvironmentProblem, ResourceError


@pytest.mark.parametrize(
    ("words", "kind", "hint"),
    [
        ("Cuda Runtime (out of memory)", ResourceError, "Fewer slots"),
        ("The engine plan file is not compatible with this version of TensorRT", DeviceError, REBUILD),
        ("The plan was generated on an incompatible device", DeviceError, REBUILD),
        ("CUDA initialization failure with error: 35 In checkCudaInstallation", DeviceError, OLD_DRIVER),
        (
            "(cudaError 35: CUDA driver version is insufficient for CUDA runtime version)",
            DeviceError,
            OLD_DRIVER,
        ),
        ("Cuda Runtime (no CUDA-capable device is detected)", DeviceError, OLD_DRIVER),
        ("Cuda failure 999: unknown error", DeviceError, OLD_DRIVER),
        ("forward compatibility was attempted on non supported HW", DeviceError, OLD_DRIVER),
        ("system has unsupported display driver / cuda driver combination", DeviceError, OLD_DRIVER),
        ("Cuda failure 3500: of no number that is known", EngineError, "the caller's hint"),
        ("a tensor has no name", EngineError, "the caller's hint"),
    ],
)
def test_words_decide_the_error(words, kind, hint):
    error = convert_refusal("The engine refused to run", words, "the caller's hint")
    assert type(error) is kind
    assert error.message == f"The engine refused to run: {words}"
    assert error.hint.startswith(hint)


@pytest.mark.parametrize(
    ("words", "kind", "hint"),
    [
        ("CUDA initialization failure with error: 2. Please check", ResourceError, "Stop other programs"),
        ("Cuda Runtime (out of memory)", ResourceError, "Stop other programs"),
        ("CUDA initialization failure with error: 35", DeviceError, OLD_DRIVER),
        (
            "CUDA initialization failure with error: 209",
            EnvironmentProblem,
            "`edgekiln doctor` tells whether",
        ),
        ("the library gave no reason", EnvironmentProblem, "`edgekiln doctor` tells whether"),
    ],
)
def test_words_decide_the_error_of_a_library_that_does_not_start(words, kind, hint):
    error = convert_no_start("tensorrt 11.4.0", words)
    assert type(error) is kind
    assert error.message == f"tensorrt 11.4.0 does not start: {words}"
    assert error.hint.startswith(hint)


def test_an_engine_of_another_release_is_refused_by_its_header():
    header = read_engine_header(make_header("11.4"))
    refuse_foreign(header, "tensorrt", "11.4.0", (8, 9))
    with pytest.raises(DeviceError, match=r"will not load here, because .*edgekiln build BUNDLE"):
        refuse_foreign(header, "tensorrt", "10.3.0", (8, 9))


def test_gpu_that_an_engine_does_not_run_on_is_told_from_other_refusals():
    """The tests on GPUs skip for it alone: on a 7.5 by the header, on a 9.0 by TensorRT-RTX 1.7.1 itself."""
    with pytest.raises(DeviceError) as by_header:
        refuse_foreign(read_engine_header(make_header("rtx")), "tensorrt-rtx", "1.7.1.116", (7, 5))
    words = "The engine cannot run on this GPU, which has compute capability 9.0."
    assert is_for_another_gpu(by_header.value)
    assert is_for_another_gpu(convert_refusal("tensorrt_rtx refused this engine", words))
    with pytest.raises(DeviceError) as by_version:
        refuse_foreign(read_engine_header(make_header("rtx")), "tensorrt-rtx", "1.6.0", (8, 6))
    for words in ("CUDA error 700", "The engine plan file is not compatible with this version of TensorRT"):
        assert not is_for_another_gpu(convert_refusal("tensorrt_rtx refused this engine", words))
    assert not is_for_another_gpu(by_version.value)
