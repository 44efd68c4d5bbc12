"""What the runtime itself costs a product: disk, import, cold start, overhead per call, memory. Goals stand beside.

Everything that is a cold start is measured in fresh processes.
"""

from __future__ import annotations

import statistics
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from time import perf_counter_ns
from typing import Any

import numpy as np

from edgekiln.benchmarks.costs.installed_size import compare_installations
from edgekiln.benchmarks.environment import describe_machine, measure_foreign_load
from edgekiln.runtime.bundles.bundle import open_bundle
from edgekiln.runtime.contract import Contract
from edgekiln.runtime.processes import child_environment, code_command
from edgekiln.runtime.serving.loading import load
from edgekiln.runtime.spec import Frames

__all__ = ["GOALS", "measure_runtime_cost"]

GOALS = {
    "runtime_installed_mb": "at most 250",
    "runtime_share_of_build": "at most 0.10",
    "import_ms": "at most 150",
    "start_to_first_prediction_ms": "at most 600",
    "peak_rss_mb": "at most 150, with EfficientNet-Lite0 in INT8",
    "session_run_overhead_us": "at most 10 at 64 pixels, 20 at 224",
}
"""By the name of the figure. They are told, not enforced: a machine may be slower than the one they were set for."""

_PROCESSES = 7
_FRAMES, _CALLS, _OVERHEAD_SECONDS = 16, 4000, 10.0

_IMPORT = "import time; t = time.perf_counter(); {}; print(time.perf_counter() - t)"
_FIRST = """
import sys
import edgekiln.runtime as runtime
with runtime.load(sys.argv[1], self_test=False) as classifier:
    classifier.predict(sys.argv[2])
from edgekiln.benchmarks.costs.memory import read_peak_rss_mb
print(read_peak_rss_mb())
"""


def measure_runtime_cost(bundle: Path) -> dict[str, Any]:
    """Measure with a bundle's preferred CPU engine; JSON values, units in the keys.

    Medians of 7 fresh processes, with their smallest and largest; overheads are medians of up to 4,000 calls of batch
    1 and one thread, with quartiles. Sizes are those of the files that packages list as theirs.
    """
    contract = open_bundle(bundle).contract
    foreign = measure_foreign_load()
    with tempfile.TemporaryDirectory(prefix="edgekiln-") as folder:
        picture = _write_picture(Path(folder), contract)
        statements = ("import edgekiln.runtime", "from edgekiln.runtime import load", "import numpy")
        imports = {
            line: [1000 * float(_python(_IMPORT.format(line))) for _ in range(_PROCESSES)]
            for line in statements
        }
        starts, memory = [], []
        for _ in range(_PROCESSES):
            begin = perf_counter_ns()
            memory.append(float(_python(_FIRST, str(bundle), str(picture))))
            starts.append((perf_counter_ns() - begin) / 1e6)
    overhead = _measure_overhead(bundle)
    machine = describe_machine()
    return {
        "variant": overhead.pop("variant"),
        **compare_installations(),
        "import_ms": _spread(imports["import edgekiln.runtime"]),
        "import_with_load_resolved_ms": _spread(imports["from edgekiln.runtime import load"]),
        "import_of_numpy_alone_ms": _spread(imports["import numpy"]),
        "start_to_first_prediction_ms": _spread(starts),
        "peak_rss_mb": _spread(memory),
        **overhead,
        "foreign_load_cores": round(foreign, 2),
        "goals": GOALS,
        "cpu": f"{machine['cpu']}, {machine['cores']} cores, Python {machine['python']}",
    }


def _python(code: str, *arguments: str) -> str:
    done = subprocess.run(
        code_command(code, *arguments), env=child_environment(), capture_output=True, text=True, check=True
    )
    return done.stdout


def _spread(values: list[float]) -> str:
    return f"{statistics.median(values):.1f} ({min(values):.1f} to {max(values):.1f}, n = {len(values)})"


def _write_picture(folder: Path, contract: Contract) -> Path:
    from PIL import Image

    pixels = np.random.default_rng(0).integers(0, 256, (contract.height, contract.width, 3), np.uint8)
    path = folder / "picture.jpg"
    Image.fromarray(pixels).save(path)
    return path


class _Timed:
    """Stands in front of an object of the library and notes how long its call took."""

    def __init__(self, library_object: Any, method: str) -> None:
        self._call = getattr(library_object, method)
        self.ns = 0
        setattr(self, method, self._timed)

    def _timed(self, *arguments: Any, **options: Any) -> Any:
        begin = perf_counter_ns()
        answer = self._call(*arguments, **options)
        self.ns = perf_counter_ns() - begin
        return answer


def _measure_overhead(bundle: Path) -> dict[str, str]:
    """What ``Session.run`` and ``Classifier.predict`` do around the library's own call, in microseconds per call.

    The library's part of a call is timed within it, during real inferences. Behind one the processor's caches hold
    the network, so that the same lines take several times what they take around a call that does nothing; and the
    difference of two medians of milliseconds would be the machine's noise. ``predict`` is asked an array that has the
    engine's size already: what decoding and resizing take is no overhead.
    """
    with load(bundle, device="cpu", threads=1, self_test=False) as classifier:
        session: Any = classifier.session
        height, width = session.frame_shape
        frames = np.random.default_rng(0).integers(0, 256, (_FRAMES, 1, height, width, 3), np.uint8)
        timed = _time_the_library(session, frames[0])
        bare = session.bare_call(frames[0])
        return {
            "variant": classifier.variant.name,
            "session_run_overhead_us": _overhead(session.run, bare, timed, list(frames)),
            "predict_overhead_us": _overhead(classifier.predict, bare, timed, list(frames[:, 0])),
        }


def _time_the_library(session: Any, frame: Frames) -> _Timed:
    """Put a clock around the call of the library that ``session`` makes for one image, and its bare call."""
    if session.backend == "onnxruntime-cpu":
        timed = session._session = _Timed(session._session, "run")
        return timed
    session.run(frame)  # from now on there is a request that waits for its next call
    engine = session._engine
    free = engine._static[1]._free
    timed = engine._bare = _Timed(free[0].request, "infer")
    free[:] = [replace(free[0], request=timed)]
    return timed


def _overhead(
    call: Callable[[Frames], object], bare: Callable[[], object], timed: _Timed, inputs: Sequence[Frames]
) -> str:
    """Median and quartiles of what ``call`` takes besides the library, less what the clock takes around a bare call.

    Stops early where the network is large.
    """
    differences: list[float] = []
    end = perf_counter_ns() + int(_OVERHEAD_SECONDS * 1e9)
    while len(differences) < _CALLS and perf_counter_ns() < end:
        given = inputs[len(differences) % len(inputs)]
        besides = []
        for one in (bare, partial(call, given)):
            begin = perf_counter_ns()
            one()
            besides.append(perf_counter_ns() - begin - timed.ns)
        differences.append((besides[1] - besides[0]) / 1000)
    low, middle, high = np.percentile(differences, [25, 50, 75])
    return f"{middle:.1f} (quartiles {low:.1f} to {high:.1f}, n = {len(differences)})"
