"""Energy per image above idle, where the machine can tell: meters, their sources, and one contender in a process.

A source's module knows its files or its library; ``meters`` sums what it reads, ``per_image`` takes idle off,
``sources`` chooses. May import the runtime. Judges nothing and keeps nothing.
"""
