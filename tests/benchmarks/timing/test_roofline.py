import time

import numpy as np
import onnx
import pytest

from edgekiln.benchmarks.timing import roofline
from edgekiln.benchmarks.timing.roofline import (
    Ceilings,
    encode_int8_product,
    floor_ms,
    measure_ceilings,
    measure_gpu_ceilings,
    share_of_floor,
)
from edgekiln.runtime.errors import EngineError

CPU = Ceilings(fp32_gflops=100, int8_gops=200, copy_gb_per_s=10, threads=1)
COSTS = {"macs": 50_000_000, "weight_bytes": 4_000_000, "input_bytes": 900_000, "output_bytes": 100_000}


def test_the_slower_of_arithmetic_and_traffic_is_the_floor():
    assert floor_ms(COSTS, CPU, "fp32") == pytest.approx(
        1.0
    )  # 1e8 operations at 1e11 a second; bytes: 0.5 ms
    assert floor_ms(COSTS, CPU, "int8") == pytest.approx(0.5)
    assert floor_ms({**COSTS, "macs": 1}, CPU, "fp32") == pytest.approx(0.5)


def test_what_the_cache_keeps_is_not_charged():
    cached = Ceilings(fp32_gflops=100, int8_gops=200, copy_gb_per_s=10, threads=1, cache_bytes=3_000_000)
    assert floor_ms({**COSTS, "macs": 0}, cached, "fp32") == pytest.approx(0.2)
    assert floor_ms({**COSTS, "macs": 0, "weight_bytes": 0}, cached, "fp32") == 0


def test_there_is_no_floor_without_a_ceiling():
    assert floor_ms(COSTS, CPU, "fp16") is None


def test_share_of_floor():
    assert share_of_floor(4.0, 1.0) == 0.25


def test_resnet50_on_the_machine_of_the_facts():
    """4.089 GMACs at 92.7 GFLOP/s: 88 ms, and 100.1 ms measured, so 88 %."""
    limits = Ceilings(fp32_gflops=92.7, int8_gops=None, copy_gb_per_s=14, threads=1, cache_bytes=32 << 20)
    costs = {"macs": 4_089_000_000, "weight_bytes": 102_000_000, "input_bytes": 150_528, "output_bytes": 4000}
    floor = floor_ms(costs, limits, "fp32")
    assert floor == pytest.approx(88.2, abs=0.1)
    assert share_of_floor(100.1, floor) == pytest.approx(0.88, abs=0.01)


def test_ceilings_are_measured_in_seconds_and_named():
    start = time.monotonic()
    found = measure_ceilings(1)
    assert time.monotonic() - start < 30  # 2 s on a quiet machine
    assert 0.5 < found.fp32_gflops < 1000  # one core: between a small Arm and anything sold today
    assert found.int8_gops is not None
    assert 0.5 < found.int8_gops < 10_000
    assert 0.2 < found.copy_gb_per_s < 1000
    assert found.threads == 1
    assert "BLAS" in found.libraries["fp32"]
    assert "MatMulInteger" in found.libraries["int8"]
    assert Ceilings(**found.to_dict()) == found


def test_failure_of_the_measuring_process_is_told(monkeypatch):
    monkeypatch.setattr(roofline.sys, "executable", "/bin/false")
    with pytest.raises(EngineError, match="ceilings of this machine could not be measured"):
        measure_ceilings(1)


def test_without_a_gpu_there_are_no_gpu_ceilings(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert measure_gpu_ceilings() is None


def test_hand_written_model_is_the_product_it_says():
    generator = np.random.default_rng(0)
    weights = generator.integers(-64, 64, (300, 20), np.int8)  # sizes above 127: varints of two bytes
    model = encode_int8_product(weights)
    onnx.checker.check_model(onnx.load_model_from_string(model), full_check=True)
    import onnxruntime

    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    left = generator.integers(0, 128, (5, 300), np.uint8)
    np.testing.assert_array_equal(session.run(None, {"a": left})[0], left.astype(int) @ weights.astype(int))


def test_last_level_cache_is_the_largest(tmp_path):
    for index, size in enumerate(["32K", "512K", "32M"]):
        (tmp_path / f"index{index}").mkdir()
        (tmp_path / f"index{index}" / "size").write_text(size + "\n")
    assert roofline._last_level_cache_bytes(tmp_path) == 32 << 20
    assert roofline._last_level_cache_bytes(tmp_path / "absent") == 0
