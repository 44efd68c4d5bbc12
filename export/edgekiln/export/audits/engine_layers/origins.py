"""Which ONNX nodes a layer was made from, as its metadata or its name tell."""

from __future__ import annotations

import re

__all__ = ["origins_of_metadata", "origins_of_name"]


def origins_of_metadata(metadata: str) -> tuple[str, ...]:
    """ONNX names out of ``[ONNX Layer: a]`` entries; 8.x and 10.x part them by \\x1e, newer ones by \\x1f.

    An entry may carry a suffix that tells of a rewrite: ``[ONNX Layer: a]__gemm_from_conv1x1``.
    """
    entries = re.split(r"[\x1e\x1f]|(?=\[ONNX Layer: )", metadata)
    matches = (re.fullmatch(r"\[ONNX Layer: (.*)\]\w*", entry.strip()) for entry in entries)
    return tuple(dict.fromkeys(match[1] for match in matches if match))


def origins_of_name(name: str) -> tuple[str, ...]:
    """ONNX names out of a fused layer's name: ``a + b``, ``a || b``, ``{ForeignNode[a...b]}``."""
    if name.startswith("Reformatting CopyNode"):
        return ()
    name = re.sub(r" \[profile \d+\]$", "", name)
    foreign = re.fullmatch(r"\{ForeignNode\[(.*)\.\.\.(.*)\]\}", name)
    parts = foreign.groups() if foreign else re.split(r" \+ | \|\| ", name)
    cleaned = (re.sub(r"_myl\d+_\d+$", "", part.strip()) for part in parts)
    return tuple(dict.fromkeys(part for part in cleaned if part))
