"""What it means that a line ended, or that the agent refused: ssh's words and codes as typed errors with a remedy.

ssh writes in English whatever the locale; it ends with 255 for failures of its own, else with what the command there
ended with, where 127 and 126 are the shell's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgekiln.pipeline.device.remote.registry import Device
from edgekiln.runtime.errors import (
    EdgekilnError,
    EnvironmentProblem,
    ResourceError,
    UntrustedError,
    as_printable,
)

__all__ = ["explain_end", "explain_refusal"]

_SSH_FAILED = 255
_NO_PROGRAM = (126, 127)
_MOST_TEXT = 1000
_KEY_CHANGED = ("REMOTE HOST IDENTIFICATION HAS CHANGED", "differs from the key for the IP address")
_KEY_UNKNOWN = ("Host key verification failed",)
_REFUSED = ("Permission denied", "Too many authentication failures", "No supported authentication methods")
_CONFIG = (
    "Bad configuration option",
    "Can't open user config file",
    "terminating,",
    "Bad owner or permissions",
)


def explain_end(device: Device, code: int | None, said: str, *, greeted: bool) -> EdgekilnError:
    """The error for a line that ended.

    Args:
        device: at the other end.
        code: what ssh ended with; ``None`` where it did not end, and the line fell silent.
        said: what ssh and the shell there said.
        greeted: whether the agent ran.
    """
    name = repr(device.name)
    if greeted:
        why = (
            "nothing was heard for too long" if code is None else _last_line(said) or f"ssh ended with {code}"
        )
        return EnvironmentProblem(
            f"The line to the device {name} was cut: {why}.",
            hint="What runs there ends by itself. Run the same command again to go on.",
        )
    if code is None:
        return EnvironmentProblem(
            f"The device {name} ({device.host}) did not answer in time.",
            hint=f"Is it on, and does `{_by_hand(device)}` work?",
        )
    if code in _NO_PROGRAM:
        return EnvironmentProblem(
            f"The device {name} has no Python: {device.python} cannot be run there ({_last_line(said) or code}).",
            hint="Install Python 3.10 or newer there (Debian: sudo apt install python3 python3-venv), or name the one "
            'that it has: python = "..." in devices.toml.',
        )
    if code == _SSH_FAILED:
        return _explain_ssh(device, said)
    return EnvironmentProblem(
        f"The device {name} did not start {device.python}: {_last_line(said) or f'it ended with {code}'}.",
        hint=f"Try it by hand: `{_by_hand(device)} {device.python} --version`.",
    )


def _explain_ssh(device: Device, said: str) -> EdgekilnError:
    name, last = repr(device.name), _last_line(said)
    if any(text in said for text in _KEY_CHANGED):
        return UntrustedError(
            f"The host key of the device {name} ({device.host}) is not the one that ssh knows: it was set up anew, or "
            "another machine answers in its place.",
            hint="Compare its fingerprint at the device itself (ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub). "
            "Only if it was set up anew: ssh-keygen -R HOST removes the old key, as ssh's own message says.",
        )
    if any(text in said for text in _KEY_UNKNOWN):
        return UntrustedError(
            f"ssh does not know the host key of the device {name} ({device.host}), and nobody was there to confirm it.",
            hint=f"Run `{_by_hand(device)}` once, compare the fingerprint with the device's own, and confirm it.",
        )
    if any(text in said for text in _REFUSED):
        return EnvironmentProblem(
            f"The device {name} ({device.host}) refuses this user's key: {last}.",
            hint=f"Bring your key there (ssh-copy-id), or load it (ssh-add); `{_by_hand(device)}` must work without "
            "a question.",
        )
    if any(text in said for text in _CONFIG):
        return EnvironmentProblem(
            f"ssh cannot use its configuration: {last}.", hint="Mend the file that it names."
        )
    return EnvironmentProblem(
        f"The device {name} ({device.host}) cannot be reached: {last or 'ssh says nothing'}.",
        hint=f"Is it on, and does `{_by_hand(device)}` work?",
    )


def explain_refusal(device: Device, values: Mapping[str, Any]) -> EdgekilnError:
    """The error for a request that the agent refused."""
    kind, name = values.get("kind"), repr(device.name)
    text = as_printable(str(values.get("text", "it does not say why"))[:_MOST_TEXT])
    if kind == "busy":
        return ResourceError(
            f"The device {name} is {text}.",
            hint="One job at a time runs on a device: wait, and run this again.",
        )
    if kind == "full":
        return ResourceError(
            f"No space is left on the device {name}: {text}.",
            hint="Free some there (`edgekiln device remove` removes all that edgekiln put there), or give it another "
            "folder in devices.toml. Then run the same command again to go on.",
        )
    if kind == "foreign":
        return ResourceError(
            f"The device {name}: {text}.", hint='Give it a folder of its own in devices.toml: folder = "...".'
        )
    if kind == "no-program":
        return EnvironmentProblem(
            f"The device {name}: {text}.", hint=f"Run: edgekiln device setup {device.quoted}"
        )
    return ResourceError(f"The device {name} failed: {text}.", hint="Look at its disk and permissions.")


def _by_hand(device: Device) -> str:
    config = f"-F {device.ssh_config} " if device.ssh_config else ""
    return f"ssh {config}{device.host}"


def _last_line(said: str) -> str:
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    return as_printable(lines[-1][:_MOST_TEXT]).rstrip(".") if lines else ""
