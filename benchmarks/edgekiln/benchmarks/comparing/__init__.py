"""What changed between two reports or bundles, where the two can be compared at all.

Measures nothing.

May import: ``runtime``, ``runtime/bundles``, ``benchmarks/judging``, ``benchmarks/report``.
"""
