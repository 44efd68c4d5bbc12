"""Where finished stages lie: the store, atomic placing, interrupts, progress, and the names of files in a stage.

Knows no stage's work.

May import: ``runtime``, ``runtime/bundles``, ``pipeline``, ``pipeline/recipe``.
"""
