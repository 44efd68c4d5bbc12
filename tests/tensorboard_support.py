"""Reads event files by TensorBoard's own reader."""

import struct

import pytest


def single(value):
    """What a float32 keeps of it, which is what the format has."""
    return struct.unpack("f", struct.pack("f", value))[0]


def read(folder):
    """{tag: [(step, value)]} as TensorBoard shows it."""
    event_accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator", reason="tensorboard is not installed"
    )
    reader = event_accumulator.EventAccumulator(
        str(folder), size_guidance={"scalars": 0}, purge_orphaned_data=False
    )
    reader.Reload()
    return {
        tag: [(point.step, point.value) for point in reader.Scalars(tag)] for tag in reader.Tags()["scalars"]
    }
