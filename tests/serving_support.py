"""A session whose runs can be held up, so that tests of threads wait for events and never for the clock."""

import threading

import numpy as np

from edgekiln.runtime.errors import NonFiniteError
from edgekiln.runtime.spec import check_frames

PATIENCE_S = 30.0
"""How long a test waits for what must happen; it is never waited out where the code is right."""


class GatedSession:
    """Logits are ``scale`` times the mean colour. ``gate`` closed: a run says so in ``entered`` and waits."""

    backend, device, threads, num_classes = "fake", "cpu", None, 3

    def __init__(self, scale=1.0, frame_shape=(4, 8)):
        self.scale, self.frame_shape = scale, frame_shape
        self.gate, self.entered = threading.Event(), threading.Semaphore(0)
        self.gate.set()
        self.batches, self.closed, self.running = [], 0, 0
        self.fails_on = None  # a red value that makes a run fail

    def run(self, frames):
        assert not self.closed, "run after close"
        check_frames(frames, *self.frame_shape)
        self.running += 1
        self.entered.release()
        assert self.gate.wait(PATIENCE_S)
        assert not self.closed, "closed under a call"
        self.running -= 1
        self.batches.append(len(frames))
        if self.fails_on is not None and (frames[:, 0, 0, 0] == self.fails_on).any():
            raise NonFiniteError("The engine fake gave NaN.")
        return (self.scale * frames.mean(axis=(1, 2), dtype=np.float64)).astype(np.float32)

    def close(self):
        self.closed += 1

    def wait_until_entered(self):
        assert self.entered.acquire(timeout=PATIENCE_S)


def flat(red, green=0, blue=0):
    """A picture of one colour, uint8 (4, 8, 3): its prepared frame is itself."""
    return np.full((4, 8, 3), (red, green, blue), np.uint8)
