"""How much memory the kernels of an engine may use while they run, as far as this machine has it. Builds nothing."""

from __future__ import annotations

from collections.abc import Callable

__all__ = ["SMALLEST_BYTES", "limit_workspace"]

_SHARE_OF_FREE_MEMORY = 0.8  # the rest is for the tensors of the kernels being timed
SMALLEST_BYTES = 512 * 2**20
"""Below it many kernels find no room, and a build is slow, poor or fails."""


def limit_workspace(
    wanted: int | None, flavour: str, ask_available: Callable[[], int]
) -> tuple[int | None, str | None]:
    """The limit in bytes, ``None`` for the library's own, and what a person should know of it.

    A limit above what is free, as TensorRT's own is, makes small boards run out of memory in mid-build.

    Args:
        wanted: bytes; ``None`` for as much as there is.
        flavour: TensorRT-RTX builds without a GPU, so no memory of one is asked for.
        ask_available: bytes that can be had on the GPU.
    """
    if flavour == "tensorrt-rtx":
        return wanted, None
    most = int(ask_available() * _SHARE_OF_FREE_MEMORY)
    limit = most if wanted is None else min(wanted, most)
    if most >= SMALLEST_BYTES or limit == wanted:
        return limit, None
    return limit, (
        f"Only {limit / 2**20:.0f} MiB of memory are left for the kernels' workspace: less than "
        f"{SMALLEST_BYTES // 2**20} MiB may give slow kernels, or none for a node. Close other programs, or turn the "
        "desktop off."
    )
