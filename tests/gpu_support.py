"""What tests on a real GPU share. What they expect of messages is checked on CPUs too, where they themselves skip."""

from edgekiln.runtime.backends.tensorrt_errors import REBUILD
from edgekiln.runtime.errors import EdgekilnError


def is_for_another_gpu(error: EdgekilnError) -> bool:
    """Whether a refusal says that the engine is right and this GPU is none that it runs on."""
    return error.hint == REBUILD and "compute capabilit" in error.message
