"""What the runtime itself costs a product: disk, import, cold start, overhead per call, memory. Goals stand beside.

Everything that is a cold start is measured in fresh processes.
"""

from __future__ import annotations

import statistics
import subprocess
import tempfile
from collections.abc import Callable
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
from edgekiln.runtime.spec import Logits

__all__ = ["GOALS", "measure_runtime_cost"]

GOALS = {
    "runtime_installed_mb": "at most 250",
    "runtime_share_of_build": "at most 0.10",
    "import_ms": "at most 150",
    "start_to_first_prediction_ms": "at most 600",
    "peak_rss_mb": "at most 150, with EfficientNet-Lite0 in INT8",
    "session_run_overhead_us": "at most 20",
}
"""By the name of the figure. They are told, not enforced: a machine may be slower than the one they were set for."""

_PROCESSES = 7
_ROUNDS, _CALLS = 40, 500

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

    Medians of 7 fresh processes, with their smallest and largest; the overhead is the median over 40 turns of
    500 calls each, batch 1, with the interquartile range. Sizes are those of the files that packages list as theirs.
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
    overhead, variant = _measure_overhead(bundle)
    machine = describe_machine()
    return {
        "variant": variant,
        **compare_installations(),
        "import_ms": _spread(imports["import edgekiln.runtime"]),
        "import_with_load_resolved_ms": _spread(imports["from edgekiln.runtime import load"]),
        "import_of_numpy_alone_ms": _spread(imports["import numpy"]),
        "start_to_first_prediction_ms": _spread(starts),
        "peak_rss_mb": _spread(memory),
        "session_run_overhead_us": overhead,
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


class _Instant:
    """Stands in for the library's session and answers at once, so that only edgekiln's own work is left."""

    def __init__(self, logits: Logits) -> None:
        self._answer = [logits]

    def run(self, names: list[str], feed: dict[str, Any]) -> list[Logits]:
        return self._answer


def _measure_overhead(bundle: Path) -> tuple[str, str]:
    """What ``Session.run`` does around the library's own call, in microseconds per call.

    Subtracting two timings of a network of milliseconds would measure the machine's noise, so the library is
    replaced by an object that answers at once; the cost of calling that object is subtracted.
    """
    with load(bundle, device="cpu", threads=1) as classifier:
        if classifier.variant.backend != "onnxruntime-cpu":
            return f"not measured for {classifier.variant.backend}", classifier.variant.name
        session: Any = classifier.session
        height, width = session.frame_shape
        frame = np.random.default_rng(0).integers(0, 256, (1, height, width, 3), np.uint8)
        instant = _Instant(session.run(frame))
        session._session = instant
        differences = []
        for _ in range(_ROUNDS):
            ours = _time(lambda: session.run(frame))
            bare = _time(lambda: instant.run([], {}))
            differences.append((ours - bare) / 1000)
        low, middle, high = np.percentile(differences, [25, 50, 75])
        return (
            f"{middle:.1f} (quartiles {low:.1f} to {high:.1f}, n = {len(differences)})",
            classifier.variant.name,
        )


def _time(call: Callable[[], object]) -> float:
    """Median nanoseconds of one call."""
    times = []
    for _ in range(_CALLS):
        start = perf_counter_ns()
        call()
        times.append(perf_counter_ns() - start)
    return statistics.median(times)
