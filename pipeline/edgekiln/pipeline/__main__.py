"""``python -m edgekiln.pipeline``: the command line, as ``torchrun -m`` starts it."""

from edgekiln.pipeline.cli import main

main()
