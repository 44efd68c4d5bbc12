"""What each kind of stage needs, what it makes, and whom it calls: the plan of a run, as data.

Does no stage's work: that stands in the wings, and is named here as ``module:function``.

May import: ``runtime``, ``runtime/cuda``, ``runtime/backends``, ``runtime/bundles``, ``benchmarks``,
``pipeline/recipe``, ``pipeline/workspace``, ``pipeline/data``, ``pipeline/training``, ``pipeline/variants``,
``pipeline/proof``.
"""
