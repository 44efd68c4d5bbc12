"""A GPU whose memory is a formula, in the place of torch's own account of it."""

import torch

GIB = 2**30


class Gpu:
    """A GPU of ``total`` bytes, where a step takes ``fixed + per_picture * batch``; moments come after the first."""

    def __init__(self, patch, *, total, fixed, per_picture, others=0, moments=0):
        self.total, self.fixed, self.per_picture, self.others = total, fixed, per_picture, others
        self.moments, self.held, self.peak, self.steps = moments, 0, 0, []
        for name, value in {
            "empty_cache": lambda: None,
            "synchronize": lambda device=None: None,
            "reset_peak_memory_stats": self.reset,
            "max_memory_allocated": lambda device=None: self.peak,
            "memory_reserved": lambda device=None: self.fixed,
            "mem_get_info": lambda device=None: (total - others - fixed, total),
            "get_device_name": lambda device=None: "NVIDIA A10",
        }.items():
            patch.setattr(torch.cuda, name, value)

    def reset(self, device=None):
        self.peak = 0

    def step(self, batch):
        self.steps.append(batch)
        needed = self.fixed + self.held + self.per_picture * batch
        if needed > self.total - self.others:
            raise torch.OutOfMemoryError(f"CUDA out of memory. Tried to allocate {needed} bytes.")
        self.peak = max(self.peak, needed)
        self.held = self.moments
