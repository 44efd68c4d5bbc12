"""Published vulnerabilities of TensorRT, as data. No entry here is no proof of safety.

Read from NVIDIA's security bulletins (CSAF documents in the repository NVIDIA/product-security, folders 2026/5836 and
2026/5855). The year's list of bulletins was looked through for TensorRT up to August 2026, and searched up to
October. TensorRT-LLM is another product, and so is TensorRT-RTX, which neither document names.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from edgekiln.pipeline.doctor.versions import parse_release

__all__ = ["ADVISORIES", "Advisory", "Exposure", "find_exposure"]

Exposure = Literal["affected", "unclear", "no entry"]


@dataclass(frozen=True, slots=True)
class Advisory:
    """One entry of a bulletin.

    Attributes:
        affected: in the bulletin's words.
        last_affected: the last release that it names; ``None`` where everything before ``fixed`` is affected.
        fixed: the first release that it names as mended.
    """

    cve: str
    weakness: str
    impact: str
    affected: str
    last_affected: str | None
    fixed: str
    source: str


_MAY = "https://github.com/NVIDIA/product-security/tree/main/2026/5836"
_JULY = "https://github.com/NVIDIA/product-security/tree/main/2026/5855"


def _july(cve: str, weakness: str) -> Advisory:
    return Advisory(cve, weakness, "code execution", "v0 - v10.16.1", "10.16.1", "11.0", _JULY)


ADVISORIES: tuple[Advisory, ...] = (
    Advisory(
        "CVE-2026-24188", "CWE-787 out-of-bounds write", "data tampering, denial of service",
        "all versions prior to v10.16.1", None, "10.16.1", _MAY,
    ),
    _july("CVE-2026-24227", "CWE-502 deserialization of untrusted data"),
    _july("CVE-2026-24238", "CWE-129 improper validation of array index"),
    _july("CVE-2026-24268", "CWE-122 heap-based buffer overflow"),
    _july("CVE-2026-24272", "CWE-122 heap-based buffer overflow"),
)  # fmt: skip


def find_exposure(version: str) -> tuple[Exposure, list[Advisory]]:
    """What the table says of a TensorRT release, and the entries that say it.

    ``unclear`` is a release between the last that a bulletin names as affected and the first that it names as mended.
    """
    here = parse_release(version)
    unfixed = [a for a in ADVISORIES if here < parse_release(a.fixed)]
    affected = [a for a in unfixed if a.last_affected is None or here[:3] <= parse_release(a.last_affected)]
    if affected:
        return "affected", affected
    return ("unclear", unfixed) if unfixed else ("no entry", [])
