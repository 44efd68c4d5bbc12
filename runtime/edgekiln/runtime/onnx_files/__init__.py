"""What an ONNX file may hold before a library is shown it: limits, operators, edges, metadata; and what it holds.

Reads bytes itself and knows no library, no bundle and no picture.

May import: ``runtime``.
"""
