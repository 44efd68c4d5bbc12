"""Sessions that answer wrongly in the ways that libraries do, and canaries of the right one."""

import numpy as np

from edgekiln.pipeline.device.canary_records import CanaryReference, record_canaries
from edgekiln.runtime.bundles.canaries import CanaryRecord
from edgekiln.runtime.errors import NonFiniteError
from edgekiln.runtime.spec import Precision

CLASSES = 5


class LinearSession:
    """Logits are fixed weights times the mean colour of each quarter; ``fault(logits)`` changes what it answers."""

    backend, device, threads, num_classes = "onnxruntime-cpu", "cpu", None, CLASSES

    def __init__(self, fault=None, frame_shape=(32, 40)):
        self.fault, self.frame_shape = fault, frame_shape
        self.batches, self.closed = [], 0

    def run(self, frames):
        height, width = self.frame_shape
        quarters = frames.reshape(-1, 2, height // 2, 2, width // 2, 3).mean(axis=(2, 4)).reshape(-1, 12)
        weights = np.random.default_rng(0).normal(size=(12, CLASSES)) / 100
        logits = (quarters @ weights).astype(np.float32)
        self.batches.append(len(frames))
        return logits if self.fault is None else self.fault(logits)

    def close(self):
        self.closed += 1


def recorded(session=None, precision=Precision.INT8, reference="own"):
    """The record of a session that is right, by the product's own recorder."""
    session = session or LinearSession()
    logits = LinearSession(frame_shape=session.frame_shape)
    known = None if reference is None else answers(logits)
    values = record_canaries(session, lambda threads: session, CanaryReference(known, precision))
    return CanaryRecord.from_dict(values, session.num_classes)


def answers(session):
    from edgekiln.pipeline.device.canary_records import answer_canaries

    return answer_canaries(session)


def only_in_batches(logits):
    """The channel of class 0 scales all others, as OpenVINO's FullyConnected does on ARM, for batches alone."""
    return logits if len(logits) == 1 else logits * np.float32([1, 0.7, 1.2, 0.9, 1.4])


def only_one_class(logits):
    wrong = logits.copy()
    wrong[:, 3] *= np.float32(1.3)
    return wrong


def only_the_last_of_a_batch(logits):
    """A buffer that was not written: the picture before answers for the last one."""
    wrong = logits.copy()
    if len(logits) > 1:
        wrong[-1] = wrong[-2]
    return wrong


def only_in_odd_batches(logits):
    return logits * np.float32(1.5) if len(logits) in (3, 5) else logits


def never_finite(logits):
    return np.full_like(logits, np.nan)


def refused_as_not_finite(logits):
    raise NonFiniteError("The engine fake gave NaN or infinity for image 0 of the batch (1 in all).")


def one_class_less(logits):
    return logits[:, :-1]


FAULTS = (
    only_in_batches,
    only_one_class,
    only_the_last_of_a_batch,
    never_finite,
    refused_as_not_finite,
    one_class_less,
)
"""What ``load``'s four pictures find too."""
