"""TensorRT engines: built in a child process, and kept in a cache. Needs no torch and no onnx.

May import the runtime. Knows no graph surgery and no recipe.
"""
