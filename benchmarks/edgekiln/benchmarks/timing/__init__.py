"""How fast: contenders in fresh processes, interleaved, their raw times, and the floor that the machine sets.

May import the runtime and the ground (``environment``). Knows no label and no verdict.
"""
