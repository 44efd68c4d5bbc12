"""How fast a machine could be: measured ceilings of arithmetic and copying, and the time no engine should go below.

The roofline model of Williams, Waterman and Patterson (CACM 52(4), 2009). A ceiling is what one named library
reached on this machine, not what the maker's sheet says: a share above 1 means that the engine's kernels beat that
library, or use an algorithm with fewer operations (Winograd). What is left out makes the floor lower, never higher:
activations (they may stay in caches), and on GPUs the time to launch each kernel, which rules at batch 1.

Run as a module, this measures in a process of its own: BLAS reads its number of threads once, when it is loaded.
"""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from edgekiln.runtime.errors import EngineError, EnvironmentProblem
from edgekiln.runtime.processes import child_environment, module_command

__all__ = ["Ceilings", "floor_ms", "measure_ceilings", "measure_gpu_ceilings", "share_of_floor"]

_SECONDS = 0.4  # of repeats for each ceiling
_LEAST_REPEATS = 3
_SIZE = 512
"""Of the square matrices: milliseconds a product, so that some of many runs are left alone by the neighbours."""
_GPU_SIZE = 8192
_TIMEOUT_SECONDS = 120.0
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "BLIS_NUM_THREADS")
_COPY_PART_BYTES = 8 << 20
_MIN_COPY_BYTES, _MAX_COPY_BYTES = 64 << 20, 256 << 20


@dataclass(frozen=True, slots=True)
class Ceilings:
    """The best that libraries reached here; ``None`` where none was at hand.

    Attributes:
        fp32_gflops: 1e9 operations per second in a product of square matrices; a multiply-accumulate is two.
        int8_gops: the same with uint8 by int8.
        fp16_gflops: the same in FP16; GPUs only.
        copy_gb_per_s: 1e9 bytes per second of a copy larger than the caches, read plus written.
        threads: of the CPU; ``None`` for a GPU.
        cache_bytes: of the last-level cache; 0 where it is not told.
        libraries: what reached each ceiling.
    """

    fp32_gflops: float
    int8_gops: float | None
    copy_gb_per_s: float
    threads: int | None
    fp16_gflops: float | None = None
    cache_bytes: int = 0
    libraries: Mapping[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {**asdict(self), "libraries": dict(self.libraries)}


def floor_ms(costs: Mapping[str, Any], ceilings: Ceilings, precision: str) -> float | None:
    """max(2 * MACs / rate, bytes / bandwidth) in milliseconds for one image.

    Bytes are weights, input and output, less what the last-level cache can keep from the call before.

    Args:
        costs: ``Costs.to_dict()`` of the graph.
        ceilings: of the device and thread count that the engine uses.
        precision: ``fp32``, ``fp16`` or ``int8``; of all products, so what stays in a wider type is not charged.

    Returns:
        ``None`` where no ceiling of this precision was measured.
    """
    rates = {"fp32": ceilings.fp32_gflops, "fp16": ceilings.fp16_gflops, "int8": ceilings.int8_gops}
    rate = rates.get(precision)
    if rate is None:
        return None
    used: int = costs["weight_bytes"] + costs["input_bytes"] + costs["output_bytes"]
    moved, operations = max(0, used - ceilings.cache_bytes), 2 * int(costs["macs"])
    return max(operations / rate, moved / ceilings.copy_gb_per_s) / 1e6


def share_of_floor(latency_ms: float, floor: float) -> float:
    """Floor over latency: 1.0 would be perfect."""
    return floor / latency_ms


def measure_ceilings(threads: int) -> Ceilings:
    """Ceilings of the CPU with ``threads`` threads, in a fresh process; some 2 s.

    FP32 is numpy's BLAS, INT8 is onnxruntime's MatMulInteger where onnxruntime is installed; one product a thread,
    all at once, rates added. Copies are numpy's, cut into one part a thread.
    """
    found = _ask_process("cpu", threads)
    assert found is not None
    return found


def measure_gpu_ceilings() -> Ceilings | None:
    """Ceilings of the first GPU through torch, in a fresh process; ``None`` without torch or a GPU it can use.

    Products of 8192 x 8192, FP32 with TF32 allowed since engines use it, INT8 through ``torch._int_mm`` where the
    GPU has it; a copy within device memory.

    Raises:
        EngineError: the process failed or did not end.
    """
    return _ask_process("cuda", None)


def _ask_process(device: str, threads: int | None) -> Ceilings | None:
    environment = child_environment(without=["OMP_WAIT_POLICY"])
    environment |= dict.fromkeys(
        _THREAD_VARIABLES, "1"
    )  # the threads are this module's own, see _sum_of_best
    command = module_command("edgekiln.benchmarks.timing.roofline", device, str(threads or 0))
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=True, env=environment, timeout=_TIMEOUT_SECONDS
        )
    except subprocess.SubprocessError as error:
        said = str(getattr(error, "stderr", None) or error).strip().splitlines()[-1]
        raise EngineError(f"The ceilings of this machine could not be measured: {said}") from error
    values = json.loads(done.stdout.splitlines()[-1])
    return None if values is None else Ceilings(**values)


# --------------------------------------------------------------------------------------------------------------
# In the measuring process


def _measure_cpu(threads: int) -> Ceilings:
    cache = _last_level_cache_bytes()
    int8 = _int8_rate(threads)
    libraries = {"fp32": f"matrix product of {_blas_name()}", "copy": f"numpy {np.__version__}"}
    if int8 is not None:
        libraries["int8"] = int8[1]
    return Ceilings(
        fp32_gflops=_fp32_rate(threads),
        int8_gops=None if int8 is None else int8[0],
        copy_gb_per_s=_copy_rate(min(max(4 * cache, _MIN_COPY_BYTES), _MAX_COPY_BYTES), threads),
        threads=threads,
        cache_bytes=cache,
        libraries=libraries,
    )


def _best_seconds(work: Callable[[], object]) -> float:
    """Shortest of several runs: what disturbs a run only makes it longer."""
    work()
    best, end, repeats = float("inf"), perf_counter() + _SECONDS, 0
    while repeats < _LEAST_REPEATS or perf_counter() < end:
        start = perf_counter()
        work()
        best = min(best, perf_counter() - start)
        repeats += 1
    return best


def _fp32_rate(threads: int) -> float:
    def make(seed: int) -> Callable[[], object]:
        left, right = np.random.default_rng(seed).random((2, _SIZE, _SIZE), np.float32)
        out = np.empty_like(left)
        return lambda: np.matmul(left, right, out=out)

    return _sum_of_best([make(i) for i in range(threads)])


def _int8_rate(threads: int) -> tuple[float, str] | None:
    from edgekiln.runtime.backends.onnxruntime import import_onnxruntime

    try:
        onnxruntime = import_onnxruntime("cpu")
    except EnvironmentProblem:
        return None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    generator = np.random.default_rng(0)
    session = onnxruntime.InferenceSession(
        encode_int8_product(generator.integers(-64, 64, (_SIZE, _SIZE), np.int8)),
        options,
        providers=["CPUExecutionProvider"],
    )
    feed = {"a": generator.integers(0, 128, (_SIZE, _SIZE), np.uint8)}
    rate = _sum_of_best([lambda: session.run(None, feed)] * threads)
    return rate, f"onnxruntime {onnxruntime.__version__} MatMulInteger"


def _sum_of_best(works: list[Callable[[], object]]) -> float:
    """1e9 operations per second of products that run side by side, one a thread, each at its best.

    One product split over all threads would measure how well they wait for one another: where neighbours keep a
    core busy, a BLAS with two threads can be slower than with one.
    """
    barrier = threading.Barrier(len(works))

    def time_one(work: Callable[[], object]) -> float:
        barrier.wait()
        return _best_seconds(work)

    with ThreadPoolExecutor(len(works)) as pool:  # BLAS and onnxruntime let go of the interpreter's lock
        return sum(2 * _SIZE**3 / seconds / 1e9 for seconds in pool.map(time_one, works))


def _copy_rate(nbytes: int, threads: int) -> float:
    """Best over parts of 8 MiB per thread: each is cold again by its next turn, since all are far more than caches."""
    source, target = np.ones(nbytes, np.uint8), np.zeros(nbytes, np.uint8)
    target[:] = 1  # zeros alone are pages that do not exist yet
    count = max(4, nbytes // (threads * _COPY_PART_BYTES)) * threads
    parts = list(zip(np.array_split(target, count), np.array_split(source, count), strict=True))
    turns = itertools.cycle([parts[i : i + threads] for i in range(0, count, threads)])
    with ThreadPoolExecutor(threads) as pool:  # numpy lets go of the interpreter's lock while it copies

        def copy() -> None:
            list(pool.map(_copy_part, next(turns)))

        return 2 * threads * (nbytes // count) / _best_seconds(copy) / 1e9


def _copy_part(part: tuple[Any, Any]) -> None:
    np.copyto(*part)


def _blas_name() -> str:
    """The BLAS that numpy was built with, for example ``scipy-openblas 0.3.31``."""
    config: Any = np.show_config(mode="dicts")
    blas = (config or {}).get("Build Dependencies", {}).get("blas", {})
    return f"numpy's BLAS, {blas.get('name', 'unnamed')} {blas.get('version', '')}".strip()


def _last_level_cache_bytes(folder: Path = Path("/sys/devices/system/cpu/cpu0/cache")) -> int:
    sizes = [0]
    for path in sorted(folder.glob("index*/size")):
        text = path.read_text().strip()
        unit = {"K": 1 << 10, "M": 1 << 20}.get(text[-1:], 1)
        sizes.append(int(text.rstrip("KM")) * unit)
    return max(sizes)


def encode_int8_product(weights: np.ndarray[Any, np.dtype[np.int8]]) -> bytes:
    """An ONNX model of one MatMulInteger: ``a`` uint8 (M, K) times int8 (K, N), int32 out.

    Written by hand, field by field of onnx.proto (opset 10, IR 7), since who benchmarks may have no ``onnx``.
    """
    rows, columns = weights.shape
    node = _text(1, "a") + _text(1, "b") + _text(2, "y") + _text(4, "MatMulInteger")
    constant = _number(1, rows) + _number(1, columns) + _number(2, 3) + _text(8, "b")
    constant += _message(9, weights.tobytes())
    graph = _message(1, node) + _text(2, "g") + _message(5, constant)
    graph += _message(11, _matrix("a", 2, rows)) + _message(12, _matrix("y", 6, columns))
    return _number(1, 7) + _message(7, graph) + _message(8, _number(2, 10))


def _matrix(name: str, element_type: int, columns: int) -> bytes:
    dimensions = _message(1, _text(2, "m")) + _message(1, _number(1, columns))
    tensor = _number(1, element_type) + _message(2, dimensions)
    return _text(1, name) + _message(2, _message(1, tensor))


def _number(tag: int, value: int) -> bytes:
    return _varint(tag << 3) + _varint(value)


def _text(tag: int, value: str) -> bytes:
    return _message(tag, value.encode())


def _message(tag: int, payload: bytes) -> bytes:
    return _varint(tag << 3 | 2) + _varint(len(payload)) + payload


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def _measure_gpu() -> Ceilings | None:
    from edgekiln.runtime.cuda.driver import probe_driver

    if not probe_driver().devices:
        return None  # asked first: importing torch takes seconds
    try:
        import torch
    except ImportError:
        return None
    if not torch.cuda.is_available():
        return None
    torch.backends.cuda.matmul.allow_tf32 = True
    rate = partial(_gpu_rate, torch)
    try:
        int8: float | None = rate(torch.int8)
    except RuntimeError:  # too old for INT8 tensor cores
        int8 = None
    name = f"torch {torch.__version__}"
    return Ceilings(
        fp32_gflops=rate(torch.float32),
        int8_gops=int8,
        copy_gb_per_s=_gpu_copy_rate(torch),
        threads=None,
        fp16_gflops=rate(torch.float16),
        cache_bytes=int(getattr(torch.cuda.get_device_properties(0), "L2_cache_size", 0)),
        libraries={"fp32": f"{name} matmul, TF32 allowed", "fp16": f"{name} matmul", "copy": name}
        | ({} if int8 is None else {"int8": f"{name} _int_mm"}),
    )


def _gpu_rate(torch: Any, dtype: Any, size: int = _GPU_SIZE) -> float:
    # Random values: products of zeros run faster, since they draw less power.
    left, right = (torch.randint(-64, 64, (size, size), device="cuda").to(dtype) for _ in range(2))
    product = torch._int_mm if dtype == torch.int8 else torch.matmul

    def work() -> None:
        product(left, right)
        torch.cuda.synchronize()

    return 2 * size**3 / _best_seconds(work) / 1e9


def _gpu_copy_rate(torch: Any, nbytes: int = 1 << 30) -> float:
    source, target = (torch.ones(nbytes, dtype=torch.uint8, device="cuda") for _ in range(2))

    def work() -> None:
        target.copy_(source)
        torch.cuda.synchronize()

    return 2 * nbytes / _best_seconds(work) / 1e9


def main() -> None:
    """Entry point: ``python -m edgekiln.benchmarks.timing.roofline cpu|cuda THREADS``; prints one line of JSON."""
    device, threads = sys.argv[1:3]
    found = _measure_gpu() if device == "cuda" else _measure_cpu(int(threads))
    print(json.dumps(found and found.to_dict()))


if __name__ == "__main__":
    main()
