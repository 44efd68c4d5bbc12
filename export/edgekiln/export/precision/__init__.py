"""Graphs of lower precision: FP16, INT8 for CPUs and for TensorRT, and the checks of what goes into them and comes
out.

Builds no engine and trains nothing.

May import: ``runtime``, ``runtime/backends``, ``export``.
"""
