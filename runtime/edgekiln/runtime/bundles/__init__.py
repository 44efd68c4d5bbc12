"""What ships: the manifest, the files that it lists, archives, signatures, and how they are written and checked.

May import the ground, ``onnx_files`` and the names of ``backends``. Knows nothing of classifiers, and opens no engine.
"""
