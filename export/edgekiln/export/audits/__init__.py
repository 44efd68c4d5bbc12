"""What an engine really computes in, layer by layer, and what it costs: MACs, bytes, the share of each precision.

Judges no accuracy and times nothing.

May import: ``runtime``, ``runtime/backends``, ``export/precision``.
"""
