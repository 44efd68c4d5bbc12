"""The machine that will run an engine: building, judging and timing there, and test vectors of it.

Needs no torch and no recipe.

May import: ``runtime``, ``runtime/cuda``, ``runtime/pictures``, ``runtime/backends``, ``runtime/bundles``,
``benchmarks``, ``benchmarks/timing``, ``benchmarks/judging``, ``benchmarks/costs``, ``benchmarks/report``,
``export/engines``, ``export/audits``, ``pipeline/workspace``, ``pipeline/shipping``.
"""
