"""From a checkpoint's ONNX file to the variants that a recipe asks for: graphs, closed loop, engines, fast frames.

Judges nothing for shipping.

May import: ``runtime``, ``runtime/backends``, ``runtime/bundles``,
``runtime/serving``, ``benchmarks``, ``benchmarks/judging``, ``export``,
``export/precision``, ``export/qat``, ``export/audits``, ``pipeline/recipe``, ``pipeline/workspace``, ``pipeline/data``,
``pipeline/training``, ``pipeline/device``.
"""
