"""TensorRT engines: built and inspected in child processes, and kept in a cache. Needs no torch and no onnx.

Knows no graph surgery and no recipe.

May import: ``runtime``, ``runtime/cuda``, ``runtime/onnx_files``, ``runtime/backends``, ``runtime/bundles``,
``export``.
"""
