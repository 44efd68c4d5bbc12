"""Feeds damaged files to edgekiln in a child process and counts how each ends: ``python -m edgekiln.pipeline.fuzz``."""
