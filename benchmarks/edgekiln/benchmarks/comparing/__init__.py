"""What changed between two reports or bundles, where the two can be compared at all.

May import the runtime, ``judging`` and what reads a ``report``. Measures nothing.
"""
