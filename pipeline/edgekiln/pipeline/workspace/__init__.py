"""Where finished stages lie: the store, atomic placing, interrupts, progress, and the names of files in a stage.

May import ``recipe``, the runtime and the ground's ``capacity``. Knows no stage's work.
"""
