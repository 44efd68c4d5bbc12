"""What each CUDA layer promises, checked on the real device without pytest: one row for each promise.

The layers are those that ``open_cuda`` names. ``tests/runtime/cuda/test_conformance.py`` asks for more, with pytest.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from functools import partial
from types import SimpleNamespace
from typing import Any, get_args, get_type_hints

import numpy as np

from edgekiln.pipeline.gpu_suite.isolation import SkippedPart, Tell
from edgekiln.pipeline.gpu_suite.machine import is_installed
from edgekiln.runtime.cuda import CudaApi, DeviceMemory, PinnedMemory, Stream, open_cuda
from edgekiln.runtime.errors import DeviceError, EdgekilnError, ResourceError, UsageError

__all__ = ["CHECKS", "check_all", "check_layer", "list_layers"]

_NBYTES = 1 << 20
_THREADS = 4
_ROUNDS = 50
_LAUNCHES = 200


def list_layers() -> tuple[str, ...]:
    """The CUDA layers that there are, by the names that ``open_cuda`` takes."""
    return tuple(name for name in get_args(get_type_hints(open_cuda)["api"]) if name != "auto")


def check_layer(arguments: Mapping[str, Any], tell: Tell) -> dict[str, Any]:
    """Open one layer and check all that it promises.

    Args:
        arguments: ``layer``: its name.
        tell: told of each check before it is tried, so that a crash is known by its check.

    Raises:
        MissingExtraError: its package is not installed.
    """
    tell({"check": "open"})
    chosen: Any = arguments["layer"]
    cuda = open_cuda(chosen)
    try:
        return check_all(cuda, tell)
    finally:
        cuda.close()


def check_all(cuda: CudaApi, tell: Tell) -> dict[str, Any]:
    """Every check of ``CHECKS``: ``state``, ``reason`` and milliseconds by name; with ``failures``."""
    rows: dict[str, Any] = {}
    for name, check in CHECKS.items():
        tell({"check": name})
        began = time.perf_counter()
        try:
            found = check(cuda)
            rows[name] = {"state": "done", "reason": None, **(found or {})}
        except SkippedPart as error:
            rows[name] = {"state": "skipped", "reason": str(error)}
        except Exception as error:  # a broken layer raises anything; the other checks are made all the same
            rows[name] = {"state": "failed", "reason": f"{type(error).__name__}: {error}"[:1000]}
        rows[name]["ms"] = round(1000 * (time.perf_counter() - began), 2)
    failures = [{"test": n, "reason": row["reason"]} for n, row in rows.items() if row["state"] == "failed"]
    return {"layer": cuda.name, "device": cuda.properties.name, "checks": rows, "failures": failures}


# --------------------------------------------------------------------------------------------------------------
# The checks


def _require(holds: bool, wanted: str) -> None:
    if not holds:
        raise AssertionError(f"wanted: {wanted}")


def _bytes(seed: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.random.default_rng(seed).integers(0, 256, _NBYTES, np.uint8)


def _buffers(cuda: CudaApi) -> tuple[PinnedMemory, DeviceMemory, PinnedMemory]:
    return cuda.allocate_pinned(_NBYTES), cuda.allocate_device(_NBYTES), cuda.allocate_pinned(_NBYTES)


def _go_round(cuda: CudaApi, held: tuple[PinnedMemory, DeviceMemory, PinnedMemory], stream: Stream) -> None:
    source, device, target = held
    cuda.copy_to_device(device, source, _NBYTES, stream)
    cuda.copy_to_host(target, device, _NBYTES, stream)


def _check_memory(cuda: CudaApi) -> dict[str, Any]:
    free, total = cuda.memory()
    _require(0 < free <= total, f"0 < free <= total, got {free} of {total}")
    return {"free_bytes": free, "total_bytes": total}


def _check_copies(cuda: CudaApi) -> None:
    held, stream = _buffers(cuda), cuda.create_stream()
    for seed, wait in ((1, "spin"), (2, "blocking")):
        held[0].array[:], held[2].array[:] = _bytes(seed), 0
        _go_round(cuda, held, stream)
        stream.synchronize("spin" if wait == "spin" else "blocking")
        _require(np.array_equal(held[2].array, _bytes(seed)), f"the bytes come back ({wait})")


def _check_mapped(cuda: CudaApi) -> None:
    if not cuda.properties.can_map_host_memory:
        raise SkippedPart("this device cannot map host memory")
    mapped, (_, _, target), stream = (
        cuda.allocate_pinned(_NBYTES, mapped=True),
        _buffers(cuda),
        cuda.create_stream(),
    )
    _require(mapped.device_address is not None, "mapped memory has a device address")
    there: Any = SimpleNamespace(address=mapped.device_address, nbytes=_NBYTES)
    mapped.array[:] = _bytes(3)
    cuda.copy_to_host(target, there, _NBYTES, stream)
    stream.synchronize()
    _require(np.array_equal(target.array, _bytes(3)), "the device reads mapped memory")


def _check_events(cuda: CudaApi) -> dict[str, Any]:
    held, stream = _buffers(cuda), cuda.create_stream()
    before, after = (cuda.create_event(timing=True) for _ in range(2))
    before.record(stream)
    _go_round(cuda, held, stream)
    after.record(stream)
    after.synchronize()
    spent = after.elapsed_ms(before)
    _require(spent >= 0, f"no time below 0, got {spent}")
    return {"round_trip_ms": spent}


def _check_graph(cuda: CudaApi) -> dict[str, Any]:
    held, stream = _buffers(cuda), cuda.create_stream()
    held[2].array[:] = 0
    held[0].array[:] = _bytes(4)
    graph = cuda.capture(stream, lambda: _go_round(cuda, held, stream))
    stream.synchronize()
    _require(not held[2].array.any(), "a capture records and does nothing")
    for seed in (5, 6):
        held[0].array[:] = _bytes(seed)
        graph.launch(stream)
        stream.synchronize()
        _require(
            np.array_equal(held[2].array, _bytes(seed)), "a graph replays with what the input holds then"
        )
    began = time.perf_counter()
    for _ in range(_LAUNCHES):
        graph.launch(stream)
        stream.synchronize()
    return {"launch_and_wait_us": round(1e6 * (time.perf_counter() - began) / _LAUNCHES, 2)}


def _check_failed_capture(cuda: CudaApi) -> None:
    held, stream = _buffers(cuda), cuda.create_stream()
    try:
        cuda.capture(stream, stream.synchronize)
    except DeviceError:
        pass
    else:
        raise AssertionError("wanted: a wait during a capture is a DeviceError")
    held[0].array[:] = _bytes(7)
    _go_round(cuda, held, stream)
    stream.synchronize()
    _require(np.array_equal(held[2].array, _bytes(7)), "the stream is usable after a capture that failed")


def _check_threads(cuda: CudaApi) -> None:
    wrong: list[str] = []

    def work(seed: int) -> None:
        try:
            with cuda.activate():
                held, stream = _buffers(cuda), cuda.create_stream()
                for step in range(_ROUNDS):
                    held[0].array[:] = (seed + step) % 256
                    _go_round(cuda, held, stream)
                    stream.synchronize()
                    if not (held[2].array == (seed + step) % 256).all():
                        wrong.append(f"thread {seed}, step {step}: other bytes")
        except EdgekilnError as error:
            wrong.append(f"thread {seed}: {error}")

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(_THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    _require(not wrong, f"{_THREADS} threads side by side; {'; '.join(wrong[:3])}")


def _check_allocation_during_capture(cuda: CudaApi) -> None:
    held, stream = _buffers(cuda), cuda.create_stream()
    failed: list[str] = []

    def allocate() -> None:
        try:
            cuda.allocate_device(_NBYTES).free()
            cuda.allocate_pinned(_NBYTES).free()
        except EdgekilnError as error:
            failed.append(str(error))

    def enqueue() -> None:
        thread = threading.Thread(target=allocate)
        thread.start()
        thread.join()
        _go_round(cuda, held, stream)

    cuda.capture(stream, enqueue).launch(stream)
    stream.synchronize()
    _require(not failed, f"another thread allocates during a capture; {failed[:1]}")


def _check_too_much(cuda: CudaApi) -> None:
    try:
        cuda.allocate_device(4 * cuda.memory()[1])
    except ResourceError:
        pass
    else:
        raise AssertionError("wanted: memory that is not there is a ResourceError")
    cuda.allocate_device(_NBYTES).free()


def _check_freed(cuda: CudaApi) -> None:
    memory = cuda.allocate_device(_NBYTES)
    memory.free()
    memory.free()
    try:
        _ = memory.address
    except UsageError:
        return
    raise AssertionError("wanted: freed memory has no address")


def _check_leaks(cuda: CudaApi) -> dict[str, Any]:
    free, _ = cuda.memory()
    for _ in range(_ROUNDS):
        held, stream = _buffers(cuda), cuda.create_stream()
        graph = cuda.capture(stream, partial(_go_round, cuda, held, stream))
        graph.launch(stream)
        stream.synchronize()
        graph.close()
        stream.close()
        for block in held:
            block.free()
    lost = free - cuda.memory()[0]
    _require(
        lost < 8 * _NBYTES, f"{_ROUNDS} rounds of making and freeing keep less than 8 MiB, lost {lost} bytes"
    )
    return {"lost_bytes": lost}


def _check_torch_beside(cuda: CudaApi) -> None:
    if not is_installed("torch"):
        raise SkippedPart("torch is not installed")
    import torch

    if not torch.cuda.is_available():
        raise SkippedPart(f"torch {torch.__version__} finds no GPU")
    ones = torch.ones(1000, device="cuda")
    torch.cuda.synchronize()
    target, stream = cuda.allocate_pinned(ones.nbytes), cuda.create_stream()
    tensor: Any = SimpleNamespace(address=ones.data_ptr(), nbytes=ones.nbytes)
    cuda.copy_to_host(target, tensor, ones.nbytes, stream)
    stream.synchronize()
    _require(bool((target.array.view(np.float32) == 1).all()), "torch's memory is read in the same context")
    _require(float((ones + 1).sum()) == 2000, "torch goes on working beside it")


CHECKS: dict[str, Callable[[CudaApi], Mapping[str, Any] | None]] = {
    "memory": _check_memory,
    "copies": _check_copies,
    "mapped memory": _check_mapped,
    "events": _check_events,
    "graph": _check_graph,
    "failed capture": _check_failed_capture,
    "threads": _check_threads,
    "allocation during a capture": _check_allocation_during_capture,
    "too much memory": _check_too_much,
    "freed memory": _check_freed,
    "leaks": _check_leaks,
    "torch beside it": _check_torch_beside,
}
