"""``device``: one's own machines, reached over the system's ssh: added, looked at, set up and left as they were."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgekiln.pipeline.cli.doctor import print_rows
from edgekiln.pipeline.cli.options import (
    SuggestingGroup,
    device_file_option,
    echo_line,
    json_option,
    print_document,
    program_name,
    quiet_option,
)

if TYPE_CHECKING:
    from edgekiln.pipeline.device.remote.line import Line
    from edgekiln.pipeline.device.remote.registry import Device

__all__ = ["device", "may_ask"]

_name_argument = click.argument("name")


@click.group(cls=SuggestingGroup)
def device() -> None:
    """Your own machines, reached over the system's ssh.

    ssh's own configuration, keys, known hosts and jump hosts count, and no check of ssh is weakened. All that edgekiln
    puts on a device lies in one folder there.

    \b
    edgekiln device add orin anna@orin.local --setup
    edgekiln bench runs/traffic-lights/bundle --data pictures --on orin,here --out fleet
    """


@device.command("add")
@_name_argument
@click.argument("host", metavar="USER@HOST")
@click.option("--python", metavar="PROGRAM", help="Python 3.10 or newer there; python3 by default.")
@click.option(
    "--folder", metavar="PATH", help="Where everything is put there; ~/.edgekiln-device by default."
)
@click.option(
    "--environment", metavar="PATH", help="A virtual environment with edgekiln that is there already."
)
@click.option(
    "--ssh-config", metavar="FILE", help="Configuration for this device's ssh (ssh -F), instead of your own."
)
@click.option("--required", is_flag=True, help="A release needs a variant that passes on this device.")
@click.option("--emulated", is_flag=True, help="Its processor is emulated: judge there, and time nothing.")
@click.option("--setup", is_flag=True, help="Set it up at once, as `device setup` does.")
@device_file_option
@quiet_option
@json_option
def add(name: str, host: str, setup: bool, devices: Path, quiet: bool, as_json: bool, **values: Any) -> None:
    """Reach a machine over ssh, and keep it as NAME in devices.toml.

    HOST is what ssh takes: user@address, or a host of ~/.ssh/config. On a terminal ssh may ask, for a passphrase or
    whether a new host's key is right. Nothing is kept of a machine that cannot be reached.

    \b
    edgekiln device add orin anna@orin.local --setup
    edgekiln device add "my pi" pi --folder /mnt/ssd/edgekiln --required
    """
    from edgekiln.pipeline.device.remote.registry import add_device, keep_device

    table = {"host": host, **values}
    new = add_device(devices, name, table)
    with _open(new, quiet, as_json) as line:
        machine = dict(line.machine)
    keep_device(devices, name, table)
    version = _set_up(new, (), False, quiet, as_json) if setup else None
    if as_json:
        print_document(
            {"name": name, "host": host, "machine": machine, "devices": str(devices), "edgekiln": version}
        )
        return
    echo_line(f"{name}: {machine.get('machine')}, Python {_version(machine)}; kept in {devices}")
    if version is None and new.has_own_environment:
        echo_line(f"next: {program_name()} device setup {new.quoted}")


@device.command("list")
@device_file_option
@json_option
def list_devices(devices: Path, as_json: bool) -> None:
    """List the devices of devices.toml; connects to none.

    \b
    edgekiln device list
    """
    from edgekiln.pipeline.device.remote.registry import read_devices

    known = read_devices(devices)
    if as_json:
        print_document({"devices": [_describe(one) for one in known.values()], "file": str(devices)})
        return
    if not known:
        echo_line(f"no devices in {devices}: {program_name()} device add NAME USER@HOST")
    width = max(map(len, known), default=0)
    for one in known.values():
        marks = [word for word, told in (("required", one.required), ("emulated", one.emulated)) if told]
        echo_line("  ".join([f"{one.name:{width}}", one.host, one.folder, *marks]))


@device.command("check")
@_name_argument
@device_file_option
@quiet_option
@json_option
def check(name: str, devices: Path, quiet: bool, as_json: bool) -> None:
    """Look at a device: its Python, disk, JetPack, CUDA and TensorRT, and `edgekiln doctor` where it is set up.

    Changes nothing there. Exits 5 when a check fails.

    \b
    edgekiln device check orin
    """
    from edgekiln.pipeline.device.remote.registry import choose_devices
    from edgekiln.pipeline.device.remote.upkeep import inspect_device

    chosen = choose_devices(devices, [name])[0]
    with _open(chosen, quiet, as_json) as line:
        rows = inspect_device(line)
    print_rows(rows, as_json)


@device.command("setup")
@_name_argument
@click.option(
    "--extra", "extras", multiple=True, metavar="EXTRA",
    help="Of edgekiln, to install there; may be repeated. `onnx` by default, `none` for none.",
)  # fmt: skip
@click.option(
    "--offline", is_flag=True, help="Fetch the wheels for its platform here: the device needs no network."
)
@device_file_option
@quiet_option
@json_option
def setup(
    name: str, extras: tuple[str, ...], offline: bool, devices: Path, quiet: bool, as_json: bool
) -> None:
    """Make a device's environment anew, and install this very edgekiln into it.

    Where the device has a TensorRT of its own, as JetPack does, the environment sees it. The wheel of edgekiln is made
    of the files that run here; what it needs comes from the package index, there, or with --offline here.

    \b
    edgekiln device setup orin
    edgekiln device setup pi --offline
    edgekiln device setup server --extra gpu --extra nvml
    """
    from edgekiln.pipeline.device.remote.registry import choose_devices

    chosen = choose_devices(devices, [name])[0]
    version = _set_up(chosen, extras, offline, quiet, as_json)
    if as_json:
        print_document({"name": name, "edgekiln": version, "environment": chosen.environment})
        return
    echo_line(f"{name}: edgekiln {version} in {chosen.environment}")


@device.command("remove")
@_name_argument
@click.option("--forget", is_flag=True, help="Only take it out of devices.toml; what was put there stays.")
@device_file_option
@quiet_option
@json_option
def remove(name: str, forget: bool, devices: Path, quiet: bool, as_json: bool) -> None:
    """Remove all that edgekiln put on a device, and take it out of devices.toml.

    \b
    edgekiln device remove orin
    edgekiln device remove broken-board --forget
    """
    from edgekiln.pipeline.device.remote.registry import choose_devices, drop_device, read_devices
    from edgekiln.pipeline.device.remote.upkeep import remove_from_device

    chosen, folder = choose_devices(devices, [name])[0], None
    if not forget:
        with _open(chosen, quiet, as_json) as line:
            folder = remove_from_device(line)
    if name in read_devices(devices):
        drop_device(devices, name)
    if as_json:
        print_document({"name": name, "removed": folder})
        return
    echo_line(
        f"{name}: {f'removed {folder} there' if folder else 'nothing was removed there'}; out of {devices}"
    )


def _open(chosen: Device, quiet: bool, as_json: bool) -> AbstractContextManager[Line]:
    from edgekiln.pipeline.device.remote.line import open_line

    return open_line(chosen, _teller(quiet), ask=may_ask(quiet, as_json))


def may_ask(quiet: bool, as_json: bool) -> bool:
    """Whether a person is there whom ssh may ask."""
    return not quiet and not as_json and sys.stdin.isatty() and sys.stderr.isatty()


def _teller(quiet: bool) -> Callable[[str], None]:
    from edgekiln.pipeline.workspace.progress import make_progress

    return make_progress(quiet).message


def _set_up(chosen: Device, extras: Sequence[str], offline: bool, quiet: bool, as_json: bool) -> str:
    from edgekiln.pipeline.device.remote.upkeep import SetupWish, set_up

    named = tuple(extra for extra in extras if extra != "none")
    wish = SetupWish(named if extras else SetupWish().extras, offline)
    with _open(chosen, quiet, as_json) as line:
        return set_up(line, wish, _teller(quiet))


def _describe(one: Device) -> dict[str, Any]:
    keys = ("name", "host", "python", "folder", "environment", "required", "emulated")
    config = None if one.ssh_config is None else str(one.ssh_config)
    return {**{key: getattr(one, key) for key in keys}, "ssh_config": config}


def _version(machine: Mapping[str, Any]) -> str:
    version = machine.get("python")
    return ".".join(map(str, version)) if isinstance(version, list) else "unknown"
