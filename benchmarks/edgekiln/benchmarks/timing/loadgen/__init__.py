"""MLPerf's own load generator drives an engine of a bundle, or of a run: a second opinion on our timing.

LoadGen is C++ with its own clock, its own order of samples and its own rules of what counts. It runs in a fresh
process, writes its logs to a temporary folder, and calls ``Session.run`` through a system under test that also times
each of these calls itself (boundary ``call``), so that both stopwatches are compared on the very same work. Its own
also holds the callbacks into Python and back, some tens of microseconds: on a network far below a millisecond the two
differ by that, on one of several milliseconds by a hundredth or so (1.0 and 1.5 % measured on a fully loaded
machine).

What this is not: a submission to MLPerf. That also needs the seeds of its round, an accuracy run on the same system
and a review; ``compliant`` speaks of durations and counts alone.

``run`` asks, ``__main__`` is the process that LoadGen runs in. May import the runtime and the ground; knows nothing
of the interleaved benchmark beside it.
"""
