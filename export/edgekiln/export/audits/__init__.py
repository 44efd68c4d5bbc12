"""What an engine really computes in, layer by layer, and what it costs: MACs, bytes, the share of each precision.

May import the runtime and ``precision``. Judges no accuracy and times nothing.
"""
