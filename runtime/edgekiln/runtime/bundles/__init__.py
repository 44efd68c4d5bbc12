"""What ships: the manifest, the files that it lists, archives, signatures, and how they are written and checked.

Also canaries: what an engine answered to made pictures, and whether one that is open here answers the same. Knows
nothing of classifiers, and opens no engine.

May import: ``runtime``, ``runtime/backends``.
"""
