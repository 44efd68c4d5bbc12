"""What an engine costs besides time: memory, energy, disk, the runtime's own share, the batcher's.

Judges nothing.

May import: ``runtime``, ``runtime/cuda``, ``runtime/pictures``, ``runtime/backends``, ``runtime/bundles``,
``runtime/serving``, ``benchmarks``, ``benchmarks/timing``.
"""
