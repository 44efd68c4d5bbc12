"""Feeds damaged files to edgekiln in a child process and counts how each ends: ``PYTHONPATH=tests python -m fuzz``."""
