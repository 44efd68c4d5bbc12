"""What a release needs, for developers: wheel and sdist, built and tried in clean environments, and its notes.

It stands in no wheel. ``make wheel`` calls it: ``PYTHONPATH=tests python -m release wheel dist``.
"""
