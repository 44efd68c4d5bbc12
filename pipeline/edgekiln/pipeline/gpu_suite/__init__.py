"""What is to be proven on an NVIDIA GPU, in one command: ``python -m edgekiln.pipeline.gpu_suite --out FILE.json``.

Runs without installing edgekiln, and without pydantic, torchvision, onnxscript, pytest or any engine library: what is
missing is skipped, and the result says what was and why.

May import: ``runtime``, ``runtime/cuda``, ``runtime/backends``, ``benchmarks``, ``benchmarks/timing``,
``benchmarks/endurance``, ``export``, ``export/precision``, ``export/engines``, ``export/audits``,
``pipeline/shipping``, ``pipeline/workspace``, ``pipeline/device``, ``pipeline/proof``.
"""
