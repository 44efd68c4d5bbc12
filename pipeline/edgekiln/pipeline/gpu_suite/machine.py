"""What the figures were measured on, as far as the driver, ``nvidia-smi`` and the packages tell. No host, no paths."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

from edgekiln.benchmarks.environment import describe_machine, tool_versions
from edgekiln.pipeline.gpu_suite.isolation import Tell
from edgekiln.runtime.cuda import DriverState, probe_driver
from edgekiln.runtime.cuda.driver import gpu_uuids

__all__ = ["describe_gpu", "is_installed", "probe_machine", "query_smi", "report_machine"]

_TOOLS = (
    "triton",
    "onnxscript",
    "onnxconverter-common",
    "nvidia-modelopt",
    "tensorrt",
    "tensorrt-cu12",
    "tensorrt-cu13",
    "tensorrt-lean",
    "tensorrt-rtx",
    "pycuda",
    "pydantic",
    "pytest",
)
_SMI_FIELDS = {
    "driver_version": "driver",
    "pstate": "performance_state",
    "clocks.sm": "sm_clock_mhz",
    "clocks.max.sm": "max_sm_clock_mhz",
    "clocks.mem": "memory_clock_mhz",
    "power.draw": "power_draw_w",
    "power.limit": "power_limit_w",
    "temperature.gpu": "temperature_c",
    "utilization.gpu": "utilization_percent",
    "clocks_throttle_reasons.active": "throttle_reasons_mask",
    "ecc.mode.current": "ecc",
    "mig.mode.current": "mig",
}
_SMI_SECONDS = 20


def is_installed(module: str) -> bool:
    """Whether ``module`` can be found; it is not imported."""
    try:
        return find_spec(module) is not None
    except (ImportError, ValueError):
        return False


def probe_machine(arguments: Mapping[str, Any], tell: Tell) -> dict[str, Any]:
    """Ask the driver, in a process of its own: a broken one may hang or crash.

    Returns:
        ``problem``: why there is no GPU, or ``None``; and the ``report`` of ``report_machine``.
    """
    tell({"step": "ask the driver"})
    driver = probe_driver()
    tell({"step": "describe the machine"})
    return {"problem": driver.problem, "report": report_machine(driver)}


def report_machine(driver: DriverState) -> dict[str, Any]:
    """JSON values: GPU, driver, clocks and power at rest, CPU, versions."""
    machine = describe_machine()
    machine["versions"] = {**machine["versions"], **tool_versions(_TOOLS)}
    return {
        "gpu": describe_gpu(driver),
        "cuda_of_driver": ".".join(map(str, driver.version)) if driver.version else None,
        "nvidia_smi": query_smi(),
        **machine,
    }


def describe_gpu(driver: DriverState) -> dict[str, Any] | None:
    """The first GPU, which is the one that is used; without its UUID, which names one machine."""
    if not driver.devices:
        return None
    gpu = driver.devices[0]
    return {
        "name": gpu.name,
        "sm": gpu.compute_capability[0] * 10 + gpu.compute_capability[1],
        "multiprocessors": gpu.multiprocessors,
        "memory_bytes": gpu.total_memory,
        "integrated": gpu.integrated,
        "gpus": len(driver.devices),
    }


def query_smi() -> dict[str, Any]:
    """Clocks, power and temperature of the GPU in use now.

    What ``nvidia-smi`` does not tell is ``None``, ``problem`` says why.
    """
    program = shutil.which("nvidia-smi")
    if program is None:
        return {"problem": "nvidia-smi is not here"}
    uuid = next(iter(gpu_uuids()), None)  # nvidia-smi counts also what CUDA_VISIBLE_DEVICES hides
    chosen = "0" if uuid is None else f"GPU-{uuid}"
    command = [program, "-i", chosen, f"--query-gpu={','.join(_SMI_FIELDS)}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_SMI_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return {"problem": f"nvidia-smi did not answer: {type(error).__name__}"}
    values = [value.strip() for value in done.stdout.strip().split(",")]
    if done.returncode != 0 or len(values) != len(_SMI_FIELDS):
        said = (done.stdout + done.stderr).strip()
        if uuid is not None:  # which names one machine
            said = said.replace(chosen, "the GPU in use")
        return {"problem": f"nvidia-smi ended with {done.returncode}: {said[:300]}"}
    return {"problem": None, **{k: _number(v) for k, v in zip(_SMI_FIELDS.values(), values, strict=True)}}


def _number(text: str) -> float | str | None:
    if text.startswith("[") or text in {"N/A", ""}:
        return None
    # A driver's version (580.126.09) and a mask (0x0) are no numbers; 1980 and 71.4 are.
    return float(text) if re.fullmatch(r"-?\d+(\.\d+)?", text) else text
