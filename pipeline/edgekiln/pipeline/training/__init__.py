"""From a backbone and prepared pictures to a checkpoint: weights, heads, steps, rates, and how a training is resumed.

Knows no engine. ``stages`` does the work of two stages; no other module knows of stages.

May import: ``runtime``, ``benchmarks``, ``export``, ``export/qat``, ``pipeline``, ``pipeline/recipe``,
``pipeline/workspace``, ``pipeline/data``.
"""
