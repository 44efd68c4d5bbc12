"""devices.toml: what is read, refused, added and removed; what a person wrote around it stays."""

import pytest

from edgekiln.pipeline.device.remote.registry import (
    add_device,
    choose_devices,
    drop_device,
    keep_device,
    read_devices,
)
from edgekiln.runtime.errors import UsageError

WRITTEN = """# my boards
[orin]  # the one on the roof
host = "anna@orin.local"
required = true

# the small one
["my pi"]
host = "pi"
python = "~/py/bin/python3"
folder = "/mnt/an ssd/"
ssh_config = "keys/config"
"""


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "devices.toml"
    path.write_text(WRITTEN)
    return path


def test_what_is_not_said_has_its_default(path):
    orin, pi = read_devices(path).values()
    assert (orin.host, orin.required, orin.emulated, orin.python) == (
        "anna@orin.local",
        True,
        False,
        "python3",
    )
    assert (orin.folder, orin.environment) == ("~/.edgekiln-device", "~/.edgekiln-device/env")
    assert (pi.folder, pi.environment) == ("/mnt/an ssd", "/mnt/an ssd/env")
    assert pi.ssh_config == path.parent / "keys" / "config"
    assert orin.has_own_environment
    assert pi.quoted == "'my pi'"


def test_what_a_person_wrote_stays_as_it_is(path):
    values = {"host": 'o"d\\d', "python": None, "folder": "/x y", "required": True, "emulated": False}
    new = add_device(path, "new one", values)
    assert path.read_text() == WRITTEN  # not kept yet
    keep_device(path, "new one", values)
    assert path.read_text().startswith(WRITTEN)
    assert read_devices(path)["new one"] == new
    drop_device(path, "my pi")
    assert list(read_devices(path)) == ["orin", "new one"]
    drop_device(path, "new one")
    drop_device(path, "orin")
    assert path.read_text() == "# my boards\n# the small one\n"


def test_here_is_always_there_and_each_device_once(path):
    chosen = choose_devices(path, ["here", "my pi", "here"])
    assert [(one.name, one.is_here) for one in chosen] == [("here", True), ("my pi", False)]
    path.write_text('[here]\nrequired = true\nfolder = "/tmp/x"\n')
    assert choose_devices(path, ["here"])[0].required
    assert choose_devices(path.with_name("absent.toml"), ["here"])[0].is_here


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[orin\n", "is no TOML"),
        ('orin = "anna@orin"\n', "a device is a table"),
        ("[orin]\nrequired = true\n", "no host that ssh could take"),
        ('[orin]\nhost = "-oProxyCommand=touch x"\n', "no host that ssh could take"),
        ('[orin]\nhost = "a"\nhosst = "b"\n', "Did you mean 'host'"),
        ('[orin]\nhost = "a"\nrequired = "yes"\n', "true or false"),
        ('[orin]\nhost = "a"\nfolder = 3\n', "is to be text"),
        ('[orin]\nhost = "a\\u001b[2J"\n', "is to be text"),
        ('["../out"]\nhost = "a"\n', "cannot be a device's name"),
        ('[".lock"]\nhost = "a"\n', "cannot be a device's name"),
        ('["a,b"]\nhost = "a"\n', "cannot be a device's name"),
        (f'[{"x" * 65}]\nhost = "a"\n', "cannot be a device's name"),
    ],
)
def test_an_entry_without_sense_is_refused_with_its_place(path, text, says):
    path.write_text(text)
    with pytest.raises(UsageError, match=says) as told:
        read_devices(path)
    assert told.value.path == str(path)


def test_a_name_that_is_not_there_or_taken_is_told(path):
    with pytest.raises(UsageError, match="Did you mean 'orin'"):
        choose_devices(path, ["orrin"])
    with pytest.raises(UsageError, match="has a device 'orin' already"):
        add_device(path, "orin", {"host": "x"})
    with pytest.raises(UsageError, match="is this machine"):
        add_device(path, "here", {"host": "x"})
    path.write_text('orin = {host = "a"}\n')
    with pytest.raises(UsageError, match="Remove it by hand"):
        drop_device(path, "orin")
