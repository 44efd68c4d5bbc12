"""The header of a plan: what it tells, what is refused, and what TensorRT-RTX really writes."""

import subprocess
import sys

import pytest
from fake_tensorrt import make_header

from edgekiln.runtime.backends.engine_header import (
    HEADER_BYTES,
    EngineHeader,
    explain_refusal,
    read_engine_header,
)
from edgekiln.runtime.errors import EngineError, ExitCode

TRT = EngineHeader("tensorrt", (10, 3, 0, 26), None)
RTX = EngineHeader("tensorrt-rtx", (1, 7, 1, 116), (80, 86, 89))


@pytest.mark.parametrize(
    ("data", "header"),
    [
        (make_header("10.3", (10, 3, 0, 26)), TRT),
        (make_header("rtx", mask=0x0E), RTX),
        (make_header("rtx", mask=0x0E) + b"what follows is not read", RTX),
        (make_header("rtx", mask=0), EngineHeader("tensorrt-rtx", (1, 7, 1, 116), ())),
        (make_header("rtx", mask=0x21), EngineHeader("tensorrt-rtx", (1, 7, 1, 116), (75, 121))),
        # A bit that nobody explained is no capability.
        (make_header("rtx", mask=0x40), EngineHeader("tensorrt-rtx", (1, 7, 1, 116), ())),
    ],
)
def test_a_header_is_read(data, header):
    assert read_engine_header(data) == header


def test_a_version_is_told_as_the_library_tells_it():
    assert TRT.version_text == "10.3.0.26"


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b"", r"begins with b'' and has 0 bytes"),
        (b"ftrt", r"begins with b'ftrt' and has 4 bytes"),
        (make_header("10.3")[: HEADER_BYTES - 1], r"b'ftrt' and has 63 bytes"),
        (b"\x08\x0aonnx" * 20, r"begins with b'\\x08\\non' and has 120 bytes"),
        (b"trtf" + bytes(100), r"b'trtf' and has 104 bytes"),
    ],
)
def test_what_is_no_engine_is_refused(data, told):
    with pytest.raises(EngineError, match=f"no TensorRT engine: it .*{told}") as caught:
        read_engine_header(data)
    assert caught.value.exit_code == ExitCode.UNTRUSTED
    assert "b'vtrt' (TensorRT-RTX)" in caught.value.hint


def trt(*version):
    return EngineHeader("tensorrt", version, None)


@pytest.mark.parametrize(
    ("header", "flavour", "library", "capability"),
    [
        (TRT, "tensorrt", "10.3.0", (8, 7)),  # bindings that tell three numbers only
        (TRT, "tensorrt", "10.3.0.30", (8, 7)),  # same patch: the build decides nothing
        (TRT, "tensorrt", "10.16.1.11", None),  # older: whether it is version-compatible, the library knows
        (TRT, "tensorrt", "11.4.0.106", (9, 0)),
        (trt(8, 6, 1, 6), "tensorrt", "10.3.0", (8, 7)),
        (RTX, "tensorrt-rtx", "1.7.1.116", (8, 6)),
        (RTX, "tensorrt-rtx", "1.7.1.116", None),
        (RTX, "tensorrt-rtx", "1.7.1.116", (9, 0)),  # a capability without a bit: the library knows
        (
            EngineHeader("tensorrt-rtx", (1, 8, 0, 44), (86,)),
            "tensorrt-rtx",
            "1.8.0.300",
            (8, 6),
        ),  # 300 % 256
        (trt(10, 3, 0, 0), "tensorrt", "10.3.0rc1", (8, 7)),
    ],
)
def test_nothing_speaks_against_it(header, flavour, library, capability):
    assert explain_refusal(header, flavour, library, capability) is None


@pytest.mark.parametrize(
    ("header", "flavour", "library", "capability", "reason"),
    [
        (
            RTX,
            "tensorrt",
            "11.4.0.106",
            None,
            "built by tensorrt-rtx 1.7.1.116, and tensorrt 11.4.0.106 is asked",
        ),
        (TRT, "tensorrt-rtx", "1.7.1.116", None, "built by tensorrt 10.3.0.26, and tensorrt-rtx 1.7.1.116"),
        (TRT, "tensorrt", "10.2.0", None, "built by TensorRT 10.3.0.26, newer than the 10.2.0 that is here"),
        (trt(11, 0, 0, 1), "tensorrt", "10.16.1.11", None, "newer than the 10.16.1.11"),
        (trt(8, 6, 1, 6), "tensorrt", "11.4.0.106", None, "TensorRT 11.4.0.106 runs no engine of TensorRT 8"),
        (
            RTX,
            "tensorrt-rtx",
            "1.7.1.117",
            (8, 6),
            "TensorRT-RTX 1.7.1.116 and runs with exactly that; here is",
        ),
        (RTX, "tensorrt-rtx", "1.8.0.116", (8, 6), "runs with exactly that; here is 1.8.0.116"),
        (
            RTX,
            "tensorrt-rtx",
            "1.7.1.116",
            (7, 5),
            "for compute capabilities 80, 86, 89, and this GPU has 75",
        ),
        (RTX, "tensorrt-rtx", "1.7.1.116", (12, 0), "80, 86, 89, and this GPU has 120"),
        (
            EngineHeader("tensorrt-rtx", (1, 7, 1, 116), ()),
            "tensorrt-rtx",
            "1.7.1.116",
            (8, 6),
            "for compute capabilities none that is known, and this GPU has 86",
        ),
    ],
)
def test_a_refusal_says_why(header, flavour, library, capability, reason):
    assert reason in explain_refusal(header, flavour, library, capability)


# build_engine leaves the closing of its worker's pipe to the garbage collector.
@pytest.mark.parametrize(
    ("asked", "built"), [((), (80, 86, 89, 120, 121)), ((86,), (86,)), ((75, 89), (75, 89))]
)
def test_a_real_engine_of_tensorrt_rtx_tells_its_version_and_capabilities(mean_model, tmp_path, asked, built):
    rtx = pytest.importorskip("tensorrt_rtx")
    from edgekiln.export.engines.cache import EngineCache
    from edgekiln.export.engines.options import BatchProfile, BuildOptions
    from edgekiln.export.engines.tensorrt import build_engine
    from edgekiln.runtime.spec import Precision

    options = BuildOptions("tensorrt-rtx", Precision.FP32, BatchProfile(1, 2, 4), capabilities=asked)
    engine = build_engine(mean_model, options, EngineCache(tmp_path)).path.read_bytes()
    header = read_engine_header(engine[:HEADER_BYTES])
    assert header.flavour == "tensorrt-rtx"
    assert header.capabilities == built
    assert explain_refusal(header, "tensorrt-rtx", rtx.__version__, (8, 9 if asked != (86,) else 6)) is None


def test_reading_headers_needs_no_library():
    code = "import sys, edgekiln.runtime.backends.engine_header; print([m for m in sys.modules if 'tensorrt' in m])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
