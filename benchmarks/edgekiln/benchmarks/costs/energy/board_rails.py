"""Which power rails of a Jetson board add up to the whole board. Where they are read is not known here."""

from __future__ import annotations

from collections.abc import Mapping

__all__ = ["WITHIN_ANOTHER", "total_watts"]

_WHOLE_BOARD = ("VDD_IN", "VIN", "POM_5V_IN")
"""Rails before all others: Orin Nano, Orin NX and Xavier NX; Thor; Nano."""
WITHIN_ANOTHER = {"NC", "VDDQ_VDD2_1V8AO"}
"""Not connected; the memory's rail of AGX Orin, which VIN_SYS_5V0 feeds and so holds already."""


def total_watts(rails: Mapping[str, float]) -> tuple[float, tuple[str, ...]]:
    """Power of the board and the rails it is made of: the one before all others, else the sum of those beside it."""
    for name in _WHOLE_BOARD:
        if name in rails:
            return rails[name], (name,)
    names = tuple(name for name in rails if name not in WITHIN_ANOTHER)
    return sum(rails[name] for name in names), names
