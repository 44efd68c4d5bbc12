"""Whether a classifier stays well for hours: load, reloads, bad input, and what memory and latency do meanwhile.

May import the runtime. Compares engines with nothing but themselves.
"""
