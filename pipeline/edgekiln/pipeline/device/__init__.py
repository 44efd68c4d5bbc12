"""The machine that will run an engine: building there, and judging what was built.

May import the runtime, the export's ``engines``, the benchmarks and ``workspace``. Needs no torch and no recipe.
"""
