"""Whether the driver is new enough for the CUDA that each installed engine library was made for. Loads none of them."""

from __future__ import annotations

from edgekiln.benchmarks.environment import tool_versions
from edgekiln.pipeline.doctor.gpu import Gpus
from edgekiln.pipeline.doctor.row import Row, fail, ok
from edgekiln.runtime.backends.cuda_needs import LIBRARIES, needed_cuda
from edgekiln.runtime.cuda.driver import explain_old_driver

__all__ = ["check_driver_fit"]


def check_driver_fit(gpus: Gpus) -> list[Row]:
    """One row for each library that the driver is too old for; one for all the others."""
    needs = {name: needed for name in LIBRARIES if (needed := needed_cuda(name)) is not None}
    told = ", ".join(f"{name} for CUDA {major}" for name, (major, _) in needs.items())
    if gpus.cuda is None:
        nothing = "the driver does not tell which CUDA it supports" if told else "no library that needs it"
        return [ok("driver fit", f"{told}; {nothing}" if told else nothing)]
    rows = []
    for name, needed in needs.items():
        if needed[0] > gpus.cuda[0]:
            version = tool_versions([name, f"{name}-cu{needed[0]}"])
            problem = explain_old_driver(
                f"{name} {next(iter(version.values()), '')}".strip(), needed, gpus.cuda
            )
            rows.append(fail(f"driver fit {name}", problem.message, problem.hint or ""))
    newest = ".".join(map(str, gpus.cuda))
    return rows or [ok("driver fit", f"{told or 'no library that needs it'}; CUDA up to {newest}")]
