"""How a picture becomes an array: decoding, limits, resizing, and the faster decoding of JPEGs.

May import the ground (``errors``, ``contract``, ``spec``). Knows no engine, no bundle and no class names.
"""
