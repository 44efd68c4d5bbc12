"""The evidence: the PyTorch baseline, contenders and their limits, MLPerf, and the bundle that carries it all.

Makes no network and no engine.

May import: ``runtime``, ``runtime/backends``, ``runtime/bundles``, ``benchmarks``, ``benchmarks/timing``,
``benchmarks/judging``, ``benchmarks/costs``, ``benchmarks/report``, ``export``, ``export/audits``, ``pipeline/recipe``,
``pipeline/workspace``, ``pipeline/shipping``, ``pipeline/data``, ``pipeline/training``, ``pipeline/variants``.
"""
