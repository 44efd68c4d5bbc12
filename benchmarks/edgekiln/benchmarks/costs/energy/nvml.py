"""NVML: the energy counter of an NVIDIA GPU, else its power readings."""

from __future__ import annotations

from typing import Any

from edgekiln.benchmarks.costs.energy.meters import CounterMeter, EnergyMeter, OpenedMeter, PowerMeter
from edgekiln.runtime.errors import MissingExtraError
from edgekiln.runtime.extras import import_extra

__all__ = ["open_nvml"]


def open_nvml(uuid: str | None) -> OpenedMeter:
    """A meter of the GPU that CUDA's driver names ``uuid``, or of NVML's first; else why there is none."""
    try:
        pynvml: Any = import_extra("pynvml", "nvml")
    except MissingExtraError as error:
        return OpenedMeter(None, str(error))
    try:
        pynvml.nvmlInit()
        handle = (
            pynvml.nvmlDeviceGetHandleByIndex(0)
            if uuid is None
            else pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}")
        )
        return OpenedMeter(_nvml_meter(pynvml, handle), "")
    except pynvml.NVMLError as error:
        return OpenedMeter(None, f"NVML: {error}")


def _nvml_meter(pynvml: Any, handle: Any) -> EnergyMeter:
    try:  # from Volta on; millijoules since the driver was loaded
        read = [(lambda: pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1000, None)]
        return CounterMeter(read, "NVML energy counter of the GPU")
    except pynvml.NVMLError:
        return PowerMeter(
            lambda: pynvml.nvmlDeviceGetPowerUsage(handle) / 1000, "NVML power readings of the GPU"
        )
