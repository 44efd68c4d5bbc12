"""Checkpoint to ONNX to precision variants, each checked against what it came from."""
