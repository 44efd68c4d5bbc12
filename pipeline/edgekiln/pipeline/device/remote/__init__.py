"""One's own machines, reached over the system's ssh: what they hold, what is sent there, and what is believed of it.

``agent.py`` is sent to a machine and runs there; all else runs here. ``edgekiln bench``, there, judges and times.
"""
