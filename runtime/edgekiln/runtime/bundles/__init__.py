"""What ships: the manifest, the files that it lists, archives, signatures, and how they are written and checked.

Knows nothing of classifiers, and opens no engine.

May import: ``runtime``, ``runtime/backends``.
"""
