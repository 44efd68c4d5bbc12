"""How fast: contenders in fresh processes, interleaved, their raw times, and the floor that the machine sets.

Knows no label and no verdict.

May import: ``runtime``, ``runtime/cuda``, ``runtime/pictures``, ``runtime/backends``, ``runtime/bundles``,
``runtime/serving``, ``benchmarks``.
"""
