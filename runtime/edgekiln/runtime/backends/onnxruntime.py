"""ONNX Runtime on CPU and CUDA. What was asked for is what runs: no silent fall to another provider."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Callable, Collection
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekiln.runtime.arguments import check_threads
from edgekiln.runtime.backends.cuda_words import (
    OLD_DRIVER,
    tells_of_cuda,
    tells_of_driver,
    tells_of_memory,
    tells_of_old_driver,
)
from edgekiln.runtime.backends.session_base import HomeSession, SessionFacts, closed_error
from edgekiln.runtime.errors import (
    DeviceError,
    EdgekilnError,
    EngineError,
    EnvironmentProblem,
    ResourceError,
    UsageError,
)
from edgekiln.runtime.extras import import_extra
from edgekiln.runtime.onnx_files.scan import check_onnx
from edgekiln.runtime.processes import keep_in_forks
from edgekiln.runtime.spec import DLPackArray, Frames, Logits, check_finite, check_frames

if TYPE_CHECKING:  # what only a GPU needs is imported where it is: a start on a CPU does not wait for it
    from edgekiln.runtime.backends.onnxruntime_cuda import BoundRunner
    from edgekiln.runtime.cuda import CudaApi

__all__ = ["OnnxRuntimeSession", "import_onnxruntime", "session_options"]

MAX_CHUNK = 256
"""Images per call of the library: bounds the memory of activations, whatever batch the caller hands in."""

_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
_log = logging.getLogger("edgekiln.runtime")
_GPU_DISTRIBUTION = "onnxruntime-gpu"
_WRONG_ENDS = "Take a model that edgekiln exported: the pixels go in as they are, and the logits come out."
_RUNNING = "onnxruntime failed while running"
_ERRORS_ONLY = 3  # onnxruntime's log severity: 2 would print graph-optimizer chatter to stderr

_SPIN_US = 50
"""How long a worker thread without work waits by spinning: long enough for the gaps within a call, and between calls
back to back. Left to itself the library spins for tens of milliseconds, which at 10 calls a second is half a core. And
one that spins keeps a thread that an answer wakes from its core: with 500 us a lone answer of the batcher came 0.3 ms
later.
"""
_SPIN_DURATION_SINCE = (1, 26)  # 1.25.1 and older take such an entry and ignore it, without a word


def import_onnxruntime(device: str) -> ModuleType:
    """Import onnxruntime, after making sure that the environment holds exactly one of its distributions."""
    installed = [name for name in ("onnxruntime", _GPU_DISTRIBUTION) if _is_installed(name)]
    if len(installed) == 2:
        raise EnvironmentProblem(
            "onnxruntime and onnxruntime-gpu are both installed; they overwrite each other's files.",
            hint="Run: pip uninstall -y onnxruntime onnxruntime-gpu, then install one of "
            "'edgekiln[onnx]' (CPU) and 'edgekiln[gpu]' (CUDA).",
        )
    ort = import_extra("onnxruntime", "gpu" if device == "cuda" else "onnx")
    ort.disable_telemetry_events()  # for a process that had loaded it before; see runtime/telemetry.py
    return ort


def _is_installed(distribution: str) -> bool:
    """Told by the folder of its metadata: ``importlib.metadata`` takes longer to import than all of this session."""
    folder = f"{distribution.replace('-', '_')}-*-info"  # .dist-info, or an older .egg-info
    return any(_holds(Path(entry or "."), folder) for entry in sys.path)


def _holds(place: Path, folder: str) -> bool:
    try:
        return next(place.glob(folder), None) is not None
    except OSError:  # a place that this user may not read holds nothing for it
        return False


class OnnxRuntimeSession(HomeSession):
    """An ONNX file under onnxruntime: uint8 (N, H, W, 3) in, float32 (N, C) out. See ``Session``."""

    def __init__(
        self,
        model: bytes,
        device: str = "cpu",
        threads: int | None = None,
        allow_operators: Collection[str] = (),
        device_id: int = 0,
    ) -> None:
        if device not in _PROVIDERS:
            known = ", ".join(_PROVIDERS)
            raise UsageError(f"Unknown device {device!r}; known: {known}.", hint="Ask for one of these.")
        check_threads(threads)
        ort = import_onnxruntime(device)
        check_onnx(model, allow_operators=allow_operators)
        _require_provider(ort, device)
        with contextlib.ExitStack() as unfinished:
            cuda: CudaApi | None = None
            if device == "cuda":  # the driver is asked first: it tells best what it lacks
                from edgekiln.runtime.cuda import open_cuda

                cuda = open_cuda("libcuda", device=device_id)
                unfinished.callback(cuda.close)
            self._session: Any = _create(ort, model, device, threads, device_id)
            keep_in_forks(self._session)
            self._input, frame_shape = _read_input(self._session)
            self._outputs, num_classes = _read_output(self._session)
            where = "cpu" if device == "cpu" else f"cuda:{device_id}"
            super().__init__(SessionFacts(f"onnxruntime-{device}", where, threads, frame_shape, num_classes))
            self._binds = cuda is not None
            self._bound: BoundRunner | None = None
            if cuda is not None:
                self._bound = self._bind(ort, cuda)
                keep_in_forks(self._bound)
            unfinished.pop_all()

    def _bind(self, ort: ModuleType, cuda: CudaApi) -> BoundRunner:
        from edgekiln.runtime.backends.onnxruntime_cuda import BoundRunner

        return BoundRunner(
            ort,
            self._session,
            cuda,
            names=(self._input, self._outputs[0]),
            frame_shape=self.frame_shape,
            classes=self.num_classes,
        )

    def run(self, frames: Frames | DLPackArray) -> Logits:
        # What is done around the library's call finds cold caches: each line and each call of a function counts.
        session = self._session
        is_one_call = isinstance(frames, np.ndarray) and frames.ndim == 4 and 0 < len(frames) <= MAX_CHUNK
        if not is_one_call or session is None or self._binds:
            return self._run_in_parts(frames)
        self._home.check()
        try:
            logits: Logits = session.run(self._outputs, {self._input: frames})[0]
        except Exception as error:  # the library's errors share no base class
            check_frames(
                np.asarray(frames), *self.frame_shape
            )  # it has looked at them, and tells it in other words
            raise _convert(_RUNNING, error) from error
        check_finite(logits, self._facts.backend)
        return logits

    def _run_in_parts(self, frames: Frames | DLPackArray) -> Logits:
        session, frames = self._admit(self._session, frames)
        call = self._caller(session)
        chunks = [call(frames[i : i + MAX_CHUNK]) for i in range(0, len(frames), MAX_CHUNK)]
        logits = np.concatenate(chunks) if chunks else np.zeros((0, self.num_classes), np.float32)
        check_finite(logits, self.backend)
        return logits

    def _caller(self, session: Any) -> Callable[[Frames], Logits]:
        """What answers the chunks of one call. All is read here, once: ``close`` in another thread takes it away."""
        if not self._binds:
            return partial(_converted, partial(self._run_plainly, session), "cpu")
        if (bound := self._bound) is None:  # closed since the session was read
            raise closed_error()
        return partial(_converted, bound.run, "cuda")

    def _run_plainly(self, session: Any, frames: Frames) -> Logits:
        logits: Logits = session.run(self._outputs, {self._input: frames})[0]
        return logits

    def bare_call(self, frames: Frames) -> Callable[[], object]:
        """The library's call alone: what a benchmark's boundary ``engine`` times.

        On CUDA it is the call on fixed buffers, since graphs need them: it includes the copies to and from the GPU and
        the way to the thread that makes the library's calls.
        """
        session, bound = self._session, self._bound
        if session is None:
            raise closed_error()
        if self._binds:
            if bound is None:  # closed since the session was read
                raise closed_error()
            return partial(bound.run, frames)
        return partial(session.run, self._outputs, {self._input: frames})

    def close(self) -> None:
        bound, self._session, self._bound = self._bound, None, None
        if bound is not None and self._home.is_here:
            bound.close()


def _converted(call: Callable[[Frames], Logits], device: str, frames: Frames) -> Logits:
    try:
        return call(frames)
    except EdgekilnError:  # of our own copies
        raise
    except Exception as error:  # the library's errors share no base class
        raise _convert(_RUNNING, error, device) from error


def _convert(told: str, error: Exception, device: str = "cpu") -> EdgekilnError:
    """The error for what the library raised; what it is about is only in its words."""
    words = f"{told}: {error}"
    if tells_of_memory(words):
        return ResourceError(words, hint="Smaller batches, or a GPU that others use less, need less memory.")
    if tells_of_old_driver(words) and (old := _find_old_driver()) is not None:
        return DeviceError(f"{old.message} It says: {words}", hint=old.hint)
    if tells_of_driver(words):
        return DeviceError(words, hint=OLD_DRIVER)
    if device == "cuda" and tells_of_cuda(words):  # the file may be right: `load` may try the next variant
        return DeviceError(
            words, hint="`edgekiln doctor` tells whether driver, CUDA and cuDNN fit; start the process again."
        )
    return EngineError(words, hint="Where the file is whole, another release of onnxruntime may take it.")


def _require_provider(ort: ModuleType, device: str) -> None:
    provider = _PROVIDERS[device]
    if provider not in ort.get_available_providers():
        raise DeviceError(
            f"onnxruntime {ort.__version__} has no {provider} here.",
            hint="Run: pip uninstall -y onnxruntime && pip install 'edgekiln[gpu]'",
        )


def _find_old_driver() -> DeviceError | None:
    """What there is to say of a driver that tells a version, where the library named it as too old."""
    from edgekiln.runtime.backends.cuda_needs import needed_cuda
    from edgekiln.runtime.cuda.driver import explain_old_driver, supported_cuda

    has = supported_cuda()
    return None if has is None else explain_old_driver(_GPU_DISTRIBUTION, needed_cuda(_GPU_DISTRIBUTION), has)


def _refuse_fallback(wanted: str, got: str) -> DeviceError:
    """The error for another provider than was asked for, which the library takes where CUDA does not start."""
    from edgekiln.runtime.backends.cuda_needs import needed_cuda
    from edgekiln.runtime.cuda.driver import explain_old_driver, supported_cuda

    needs, has = needed_cuda(_GPU_DISTRIBUTION), supported_cuda()
    if needs is not None and has is not None and has < needs:
        return explain_old_driver(_GPU_DISTRIBUTION, needs, has)
    return DeviceError(
        f"{wanted} was asked for and {got} was given.",
        hint="The GPU, its driver, CUDA 13 or cuDNN 9 is missing; `nvidia-smi` tells which.",
    )


def _create(ort: ModuleType, model: bytes, device: str, threads: int | None, device_id: int) -> Any:
    provider = _PROVIDERS[device]
    if device == "cuda" and hasattr(ort, "preload_dlls"):
        ort.preload_dlls()  # CUDA and cuDNN from their Python packages
    options = session_options(ort, threads)
    settings = _cuda_options(graphs=True, device_id=device_id) if device == "cuda" else {}
    try:
        session = ort.InferenceSession(model, options, providers=[(provider, settings)])
    except Exception as error:  # the library's errors share no base class
        if device == "cuda" and "graph capture" in str(error):
            _log.warning("no CUDA graph, as onnxruntime says: %s", error)  # slower, not wrong
            session = _create_without_graphs(ort, model, options, provider, device_id)
        else:
            raise _convert(f"onnxruntime {ort.__version__} cannot load this model", error, device) from error
    got = session.get_providers()[0]
    if got != provider:
        raise _refuse_fallback(provider, got)
    return session


def session_options(ort: ModuleType, threads: int | None) -> Any:
    """The ``SessionOptions`` of every session: also of one that only tells of its layers."""
    options = ort.SessionOptions()
    options.log_severity_level = _ERRORS_ONLY
    # check_onnx has refused weights in other files; this is the library's own lock on the same door.
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", os.devnull)
    options.add_session_config_entry(*_limit_spinning(ort.__version__))
    if threads is not None:
        options.intra_op_num_threads = threads
    return options


def _limit_spinning(version: str) -> tuple[str, str]:
    """The configuration entry that lets worker threads sleep between calls, for this version of the library.

    Where it knows no duration they spin during a call alone, and the next call has to wake them.
    """
    major, minor = (int(part) for part in version.split(".")[:2])
    if (major, minor) >= _SPIN_DURATION_SINCE:
        return "session.intra_op.spin_duration_us", str(_SPIN_US)
    return "session.force_spinning_stop", "1"


def _cuda_options(*, graphs: bool, device_id: int) -> dict[str, str]:
    from edgekiln.runtime.backends.onnxruntime_cuda import cuda_options

    return cuda_options(graphs=graphs, device=device_id)


def _create_without_graphs(ort: ModuleType, model: bytes, options: Any, provider: str, device_id: int) -> Any:
    """For graphs of which a node runs on the CPU: those cannot be captured."""
    settings = _cuda_options(graphs=False, device_id=device_id)
    try:
        return ort.InferenceSession(model, options, providers=[(provider, settings)])
    except Exception as error:  # the library's errors share no base class
        raise _convert(f"onnxruntime {ort.__version__} cannot load this model", error, "cuda") from error


def _read_input(session: Any) -> tuple[str, tuple[int, int]]:
    inputs = session.get_inputs()
    if len(inputs) == 1 and inputs[0].type == "tensor(uint8)" and len(inputs[0].shape) == 4:
        batch, height, width, channels = inputs[0].shape
        if (
            not isinstance(batch, int)
            and isinstance(height, int)
            and isinstance(width, int)
            and channels == 3
        ):
            return inputs[0].name, (height, width)
    got = ", ".join(f"{i.name}: {i.type} {i.shape}" for i in inputs)
    raise EngineError(
        f"The model's inputs are [{got}], wanted one tensor(uint8) [N, H, W, 3] with a dynamic N.",
        hint=_WRONG_ENDS,
    )


def _read_output(session: Any) -> tuple[list[str], int]:
    outputs = session.get_outputs()
    if len(outputs) == 1 and outputs[0].type == "tensor(float)" and len(outputs[0].shape) == 2:
        classes = outputs[0].shape[1]
        if isinstance(classes, int):
            return [outputs[0].name], classes
    got = ", ".join(f"{o.name}: {o.type} {o.shape}" for o in outputs)
    raise EngineError(
        f"The model's outputs are [{got}], wanted one tensor(float) [N, classes].", hint=_WRONG_ENDS
    )
