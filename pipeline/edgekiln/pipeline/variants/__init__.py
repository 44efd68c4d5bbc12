"""From a checkpoint's ONNX file to the variants that a recipe asks for: graphs, closed loop, engines, fast frames.

May import ``training``, ``data``, ``device`` (which builds) and the export. Judges nothing for shipping.
"""
