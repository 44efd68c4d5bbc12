"""How a picture becomes an array: decoding, limits, resizing, and the faster decoding of JPEGs.

Knows no engine, no bundle and no class names.

May import: ``runtime``.
"""
