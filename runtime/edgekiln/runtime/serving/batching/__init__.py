"""Requests of many callers, grouped into batches: the queue, the waiting, and the threads that run and answer."""
