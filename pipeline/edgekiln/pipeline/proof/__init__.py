"""The evidence: the PyTorch baseline, contenders and their limits, MLPerf, and the bundle that carries it all.

May import ``variants``, ``training``, ``data``, ``shipping`` and the benchmarks. Makes no network and no engine.
"""
