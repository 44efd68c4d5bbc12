"""The machine that will run an engine: building there, judging what was built, and test vectors of it.

Needs no torch and no recipe.

May import: ``runtime``, ``runtime/pictures``, ``runtime/backends``, ``runtime/bundles``, ``benchmarks``,
``benchmarks/judging``, ``export/engines``, ``export/audits``, ``pipeline/workspace``, ``pipeline/shipping``.
"""
