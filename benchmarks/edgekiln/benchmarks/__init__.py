"""Measure, compare, judge and report: every engine next to the PyTorch model it came from."""
