"""Quantization-aware training: where Q/DQ pairs go in a PyTorch network, and how they come into the ONNX graph.

May import ``precision`` and the ground. Knows no training loop and no data.
"""
