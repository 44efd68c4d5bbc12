"""TensorRT engines: built and inspected in child processes, and kept in a cache. Needs no torch and no onnx.

May import the runtime. Knows no graph surgery and no recipe.
"""
