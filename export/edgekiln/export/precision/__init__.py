"""Graphs of lower precision: FP16, INT8 for CPUs and for TensorRT, and the checks of what goes into them and comes out.

May import the runtime and the ground (``to_onnx``, ``parity``, ``calibration``). Builds no engine and trains nothing.
"""
