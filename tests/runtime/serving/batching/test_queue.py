"""The queue of a batcher alone: places, what is swept out, and what runs together."""

import pytest

from edgekiln.runtime.serving.batching.queue import RequestQueue
from edgekiln.runtime.serving.batching.request import Answer, Request


@pytest.fixture
def queue():
    return RequestQueue(max_queue=3)


def waiting(queue, *, model="model", deadline=None):
    request = Request(None, "rgb", 0.0, deadline, Answer(queue.note_cancelled))
    request.model = model
    queue.append(request)
    return request


def test_what_is_prepared_and_what_waits_share_the_places(queue):
    first, second = waiting(queue), waiting(queue)
    assert not queue.is_full()
    queue.preparing.add(Request(None, "rgb", 0.0, None, Answer(queue.note_cancelled)))
    assert queue.is_full()
    assert len(queue) == 3
    assert list(queue.waiting) == [first, second]


def test_what_is_cancelled_or_late_is_swept_and_the_order_stays(queue):
    requests = [waiting(queue), waiting(queue, deadline=1.0), waiting(queue), waiting(queue, deadline=2.0)]
    assert queue.sweep(0.5) == []
    assert requests[2].future.cancel()
    assert queue.sweep(1.5) == [requests[1], requests[2]]
    assert list(queue.waiting) == [requests[0], requests[3]]
    assert queue.sweep(1.9) == []
    assert queue.sweep(2.0) == [requests[3]]


def test_a_batch_is_of_one_model(queue):
    requests = [waiting(queue, model=model) for model in ("old", "old", "old", "new", "old")]
    assert [queue.take_batch(2) for _ in range(4)] == [
        requests[:2], requests[2:3], requests[3:4], requests[4:],
    ]  # fmt: skip
    assert queue.take_batch(2) == []
