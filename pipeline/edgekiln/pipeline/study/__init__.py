"""What transfer learning buys: cells of one recipe by method, size and seed, run through the store, and their result.

Changes no recipe's meaning.

May import: ``runtime``, ``benchmarks``, ``benchmarks/judging``, ``benchmarks/report``, ``pipeline/recipe``,
``pipeline/workspace``, ``pipeline/data``, ``pipeline/training``, ``pipeline/proof``, ``pipeline/stages``,
``pipeline/run``.
"""
