"""Whether a classifier stays well for hours: load, reloads, bad input, and what memory and latency do meanwhile.

Compares engines with nothing but themselves.

May import: ``runtime``, ``runtime/pictures``, ``runtime/serving``.
"""
