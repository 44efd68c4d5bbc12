"""How good: accuracy, paired differences with their intervals, and the gate that decides what may ship.

Runs no engine and draws nothing.

May import: ``runtime``, ``runtime/bundles``, ``benchmarks/timing``.
"""
