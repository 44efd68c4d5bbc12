"""What ships: the manifest, the files that it lists, archives, signatures, and how they are written and checked.

Also canaries: what an engine answered to made pictures where it was judged, and whether it does so here; the kind of
machine that a verdict and a time hold for; and the table that a notebook shows of a result. Knows nothing of
classifiers, and opens no engine.

May import: ``runtime``, ``runtime/cuda``, ``runtime/backends``.
"""
