"""The kind of a machine: what a verdict holds for, and what a time holds for. Read cheaply, compared by fields.

A *verdict* is about answers: they change with the kernels that compute them. Its kind is the architecture, the library
with its minor version, and what picks kernels: of a CPU the features in ``VERDICT_FEATURES``, of a GPU its compute
capability. A *time* holds for these and for what makes the same kernels faster or slower: ``TIME_FIELDS``. The power
limit of a GPU and what else runs on the machine are in neither. No program is started.
"""

from __future__ import annotations

import platform
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from edgekiln.runtime.backends import CPU_BACKENDS, Backend
from edgekiln.runtime.bundles.machine import (
    read_board,
    read_driver,
    read_governors,
    read_power_mode,
    read_processor,
)
from edgekiln.runtime.limits import count_cores

__all__ = [
    "LIBRARIES",
    "TIME_FIELDS",
    "VERDICT_FEATURES",
    "VERDICT_FIELDS",
    "MachineKind",
    "name_machine",
    "read_host_kind",
    "read_kind",
]

VERDICT_FEATURES: frozenset[str] = frozenset({
    "avx2", "avx512f", "avx512bw", "avx512vl", "avx512_vnni", "avx_vnni", "amx_int8",
    "asimd", "asimdhp", "fphp", "asimddp", "i8mm", "sve", "sve2", "sme",
})  # fmt: skip
"""The CPU features, as Linux names them, by which onnxruntime and OpenVINO pick kernels for integers; x86, then ARM.
Half-precision arithmetic of ARM is one of them: OpenVINO needs it for INT8."""

LIBRARIES: Mapping[Backend, tuple[str, tuple[str, ...]]] = {
    "onnxruntime-cpu": ("onnxruntime", ("onnxruntime", "onnxruntime-gpu")),
    "onnxruntime-cuda": ("onnxruntime", ("onnxruntime-gpu", "onnxruntime")),
    "openvino": ("openvino", ("openvino",)),
}
"""By backend: the module, and the names of the packages that bring it. TensorRT's are in its own module."""

VERDICT_FIELDS = ("architecture", "library", "version", "features", "sm")
"""What a verdict holds for."""

TIME_FIELDS = (*VERDICT_FIELDS, "processor", "board", "cores", "gpu", "driver", "power_mode")
"""What a time holds for. The number of threads that it was measured with stands beside it."""


@dataclass(frozen=True, slots=True)
class MachineKind:
    """What a verdict and a time hold for, for one backend; what is not told, or has no meaning there, is the default.

    Attributes:
        architecture: as ``uname -m`` says, ``x86_64`` or ``aarch64``.
        library: that runs the engine.
        version: its major and minor number, as ``1.32``.
        features: those of ``VERDICT_FEATURES`` that the CPU has, sorted; for backends on the CPU.
        sm: compute capability of the GPU, as ``8.7``; for the others.
        processor: model of the CPU cores that the process may use.
        board: of a device, or the firmware's name of the machine.
        cores: that the process may use: its affinity, or the quota of its container where that is less.
        gpu: the driver's name of it.
        driver: NVIDIA's version of it.
        power_mode: of nvpmodel on a Jetson, elsewhere the frequency governors of the cores.
    """

    architecture: str
    library: str = ""
    version: str = ""
    features: tuple[str, ...] = ()
    sm: str = ""
    processor: str = ""
    board: str = ""
    cores: float = 0.0
    gpu: str = ""
    driver: str = ""
    power_mode: str = ""

    @property
    def verdict(self) -> MachineKind:
        """What of it a verdict holds for; the rest is at its default."""
        return MachineKind(**{name: getattr(self, name) for name in VERDICT_FIELDS})

    def to_dict(self) -> dict[str, Any]:
        """JSON values, without fields at their default."""
        told = {name: value for name, value in asdict(self).items() if value}
        return {**told, "features": list(self.features)} if self.features else told

    @classmethod
    def from_dict(cls, values: object) -> MachineKind:
        """What ``to_dict`` gave, also of a later version, whose further fields are not compared.

        Raises:
            TypeError, KeyError: it is something else.
        """
        if not isinstance(values, Mapping):
            raise TypeError(f"a kind of machine is an object, got {values!r}")
        found: dict[str, Any] = {f.name: values[f.name] for f in fields(cls) if f.name in values}
        found["features"] = tuple(found.get("features", ()))
        texts = [found["architecture"], *found["features"]]
        texts += [value for name, value in found.items() if name not in {"features", "cores"}]
        if not all(isinstance(text, str) for text in texts) or type(found.get("cores", 0)) not in {
            int,
            float,
        }:
            raise TypeError(f"no kind of machine: {values!r}")
        return cls(**found)


def read_kind(backend: Backend, device: int = 0, *, root: Path = Path("/")) -> MachineKind:
    """The kind that this machine is for engines of ``backend``.

    For a GPU it asks the driver, which is process-wide: see ``runtime/cuda/driver.py``.

    Args:
        backend: whose engines are meant.
        device: number of the GPU, among those that the process sees.
        root: below which /proc, /sys, /etc and /var lie.
    """
    host = read_host_kind(backend, root=root)
    if backend in CPU_BACKENDS:
        return host
    from edgekiln.runtime.cuda import probe_driver  # here, since a product without a GPU needs none of it

    devices = probe_driver().devices
    if not 0 <= device < len(devices):
        return host
    properties = devices[device]
    return replace(host, sm=".".join(map(str, properties.compute_capability)), gpu=properties.name)


def name_machine(backend: Backend) -> str:
    """What engines of ``backend`` run on here: the GPU's name, else the processor's."""
    kind = read_kind(backend)
    return kind.gpu or kind.processor


def read_host_kind(backend: Backend, *, root: Path = Path("/")) -> MachineKind:
    """As ``read_kind``, without what only the driver tells."""
    processor, on_cpu = read_processor(root), backend in CPU_BACKENDS
    library, release = _find_library(backend)
    mode = read_power_mode(root)
    return MachineKind(
        architecture=platform.machine(),
        library=library,
        version=".".join(release.split(".")[:2]),
        features=tuple(sorted(processor.features & VERDICT_FEATURES)) if on_cpu else (),
        processor=processor.model,
        board=read_board(root) or "",
        cores=float(count_cores(root)),
        driver="" if on_cpu else read_driver(root) or "",
        power_mode="+".join(read_governors(root)) if mode is None else " ".join(filter(None, mode)),
    )


def _find_library(backend: Backend) -> tuple[str, str]:
    """Name and version of the library that runs here, empty where nothing tells. Imports none."""
    if backend in ("tensorrt", "tensorrt-rtx"):
        from edgekiln.runtime.backends.tensorrt_library import find_version

        return backend, find_version(backend) or ""
    module, packages = LIBRARIES[backend]
    if module in sys.modules:
        return module, str(sys.modules[module].__version__).partition("-")[0]
    from importlib.metadata import PackageNotFoundError, version  # slow to import, and mostly not needed

    for package in packages:
        try:
            return module, version(package)
        except PackageNotFoundError:
            continue
    return module, ""
