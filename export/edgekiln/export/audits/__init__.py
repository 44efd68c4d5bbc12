"""What an engine really computes in, layer by layer, and what it costs: MACs, bytes, the share of each precision.

How long each layer takes, and what differs between two engines, stand in ``layers``. Judges no accuracy.

May import: ``runtime``, ``runtime/backends``, ``export``, ``export/precision``, ``export/engines``.
"""
