"""What an ONNX file may hold before a library is shown it: limits, operators, edges, metadata.

May import the ground (``errors``). Reads bytes itself and knows no library, no bundle and no picture.
"""
