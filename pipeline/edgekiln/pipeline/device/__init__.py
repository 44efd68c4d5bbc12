"""The machine that will run an engine: building there, and judging what was built.

Needs no torch and no recipe.

May import: ``runtime``, ``runtime/pictures``, ``runtime/backends``, ``runtime/bundles``, ``benchmarks``,
``benchmarks/judging``, ``export/engines``, ``export/audits``, ``pipeline/workspace``, ``pipeline/shipping``.
"""
