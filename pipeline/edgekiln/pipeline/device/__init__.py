"""The machine that will run an engine: building, judging and timing there, test vectors of it, and over ssh (`remote`).

Needs no torch and no recipe.

May import: ``runtime``, ``runtime/cuda``, ``runtime/pictures``, ``runtime/backends``, ``runtime/bundles``,
``benchmarks``, ``benchmarks/timing``, ``benchmarks/judging``, ``benchmarks/costs``, ``benchmarks/report``,
``export/engines``, ``export/audits``, ``pipeline``, ``pipeline/workspace``, ``pipeline/shipping``.
"""
