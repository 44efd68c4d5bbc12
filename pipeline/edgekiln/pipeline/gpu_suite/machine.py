"""What the figures were measured on, as far as the driver, ``nvidia-smi`` and the packages tell. No host, no paths."""

from __future__ import annotations

import getpass
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from edgekiln.benchmarks.environment import describe_machine, tool_versions
from edgekiln.runtime.cuda import DriverState

__all__ = ["describe_gpu", "is_installed", "query_smi", "remove_private", "report_machine"]

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
    "cuda-bindings",
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
    """Clocks, power and temperature now; what ``nvidia-smi`` does not tell is ``None``, ``problem`` says why."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return {"problem": "nvidia-smi is not here"}
    command = [program, "-i", "0", f"--query-gpu={','.join(_SMI_FIELDS)}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_SMI_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return {"problem": f"nvidia-smi did not answer: {type(error).__name__}"}
    values = [value.strip() for value in done.stdout.strip().split(",")]
    if done.returncode != 0 or len(values) != len(_SMI_FIELDS):
        return {
            "problem": f"nvidia-smi ended with {done.returncode}: {(done.stdout + done.stderr).strip()[:300]}"
        }
    return {"problem": None, **{k: _number(v) for k, v in zip(_SMI_FIELDS.values(), values, strict=True)}}


def _number(text: str) -> float | str | None:
    if text.startswith("[") or text in {"N/A", ""}:
        return None
    # A driver's version (580.126.09) and a mask (0x0) are no numbers; 1980 and 71.4 are.
    return float(text) if re.fullmatch(r"-?\d+(\.\d+)?", text) else text


def remove_private(value: Any, private: Mapping[str, str] | None = None) -> Any:
    """JSON values with every folder, user and host of this machine taken out of their texts."""
    names = _private_names() if private is None else private
    if isinstance(value, str):
        for name, word in names.items():
            value = re.sub(rf"(?<![\w.-]){re.escape(name)}(?![\w-])", word, value)
        return value
    if isinstance(value, dict):
        return {key: remove_private(entry, names) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [remove_private(entry, names) for entry in value]
    return value


def _private_names() -> dict[str, str]:
    """What to replace by what, the longest first: a folder may lie in another."""
    site = [entry for entry in sys.path if entry]
    folders = [*site, sys.prefix, sys.base_prefix, str(Path.cwd()), str(Path.home()), tempfile.gettempdir()]
    names = {folder: "..." for folder in folders if len(folder) > 1}
    names |= {os.path.realpath(folder): "..." for folder in list(names)}
    names[socket.gethostname()] = "HOST"
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = "root"
    if user != "root":  # every machine has that one, and so have many messages
        names[user] = "USER"
    return dict(sorted(names.items(), key=lambda entry: -len(entry[0])))
