"""What all sessions share: facts that outlive the engine, and the refusals before a call."""

import os

import numpy as np
import pytest

from edgekiln.runtime.backends.session_base import HomeSession, SessionFacts
from edgekiln.runtime.errors import ForkedError, InputError, UsageError

FACTS = SessionFacts("fake", "cpu", 3, (4, 8), 5)
FRAMES = np.zeros((2, 4, 8, 3), np.uint8)


def test_the_facts_are_told_as_properties():
    session = HomeSession(FACTS)
    told = (session.backend, session.device, session.threads, session.frame_shape, session.num_classes)
    assert told == ("fake", "cpu", 3, (4, 8), 5)


def test_an_open_engine_is_given_back_for_right_frames():
    engine = object()
    admitted, frames = HomeSession(FACTS)._admit(engine, FRAMES)
    assert admitted is engine
    assert frames is FRAMES
    with pytest.raises(InputError, match=r"wanted uint8 \(N, 4, 8, 3\)"):
        HomeSession(FACTS)._admit(engine, FRAMES[:, :3])


def test_a_closed_session_is_told_before_its_frames_are_looked_at():
    with pytest.raises(UsageError, match=r"session is closed\. Load the bundle again"):
        HomeSession(FACTS)._admit(None, FRAMES[:, :3])


def test_a_fork_is_told_first_of_all(monkeypatch):
    session, here = HomeSession(FACTS), os.getpid()
    monkeypatch.setattr(os, "getpid", lambda: here + 1)
    with pytest.raises(ForkedError, match="cannot be used in its fork"):
        session._admit(None, FRAMES)
