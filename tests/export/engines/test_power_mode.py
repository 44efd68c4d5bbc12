import pytest

from edgekiln.export.engines.power_mode import read_power_mode

CONFIG = "< POWER_MODEL ID=0 NAME=MAXN >\n< POWER_MODEL ID=2 NAME=15W >\n< PM_CONFIG DEFAULT=2 >\n"


@pytest.mark.parametrize(
    ("status", "config", "mode"),
    [
        ("pmode:0000 fmode:fanNull", CONFIG, ("0", "MAXN")),
        ("pmode:0002", CONFIG, ("2", "15W")),
        (None, CONFIG, ("2", "15W")),  # never changed: the default
        ("pmode:0007", CONFIG, ("7", None)),
        ("pmode:0007", None, ("7", None)),
        ("", "", None),
        (None, None, None),  # no Jetson
    ],
)
def test_mode_is_read_from_nvpmodels_files(tmp_path, status, config, mode):
    for name, text in (("var/lib/nvpmodel/status", status), ("etc/nvpmodel.conf", config)):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        if text is not None:
            (tmp_path / name).write_text(text)
    assert read_power_mode(tmp_path) == mode
