"""Quantization-aware training: where Q/DQ pairs go in a PyTorch network, and how they come into the ONNX graph.

Knows no training loop and no data.

May import: ``runtime``, ``export``, ``export/precision``.
"""
