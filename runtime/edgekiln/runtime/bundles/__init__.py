"""What ships: the manifest, the files that it lists, archives, signatures, and how they are written and checked.

Also canaries: what an engine answered to made pictures where it was judged, and whether it does so here; and the kind
of machine that a verdict and a time hold for. Knows nothing of classifiers, and opens no engine.

May import: ``runtime``, ``runtime/cuda``, ``runtime/backends``.
"""
