"""What answers: which engine of a bundle is loaded, the classifier around it, batches, streams and reloads.

Knows nothing of how an engine was made or judged.

May import: ``runtime``, ``runtime/pictures``, ``runtime/onnx_files``, ``runtime/backends``, ``runtime/bundles``.
"""
