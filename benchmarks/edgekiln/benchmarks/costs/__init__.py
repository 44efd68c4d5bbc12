"""What an engine costs besides time: memory, energy, disk, the runtime's own share, the batcher's.

May import the runtime, ``timing`` and the ground. Judges nothing.
"""
