from pathlib import Path

import pytest
from energy_support import open_here, write_files


def rapl_zone(folder, zone, name, energy, span=1000_000_000):
    write_files(folder / zone, name=name, energy_uj=energy, max_energy_range_uj=span)


def test_rapl_adds_packages_and_memory_and_goes_on_where_a_counter_starts_again(tmp_path):
    folder = tmp_path / "powercap"
    rapl_zone(folder, "intel-rapl:0", "package-0", 999_000_000)
    rapl_zone(folder, "intel-rapl:0:0", "core", 1)
    rapl_zone(folder, "intel-rapl:0:1", "dram", 0)
    rapl_zone(folder, "intel-rapl:1", "psys", 5)
    rapl_zone(folder, "intel-rapl-mmio:0", "package-0", 5)
    meter, _ = open_here(tmp_path)
    assert meter.describe() == "RAPL package-0 + dram"
    (folder / "intel-rapl:0" / "energy_uj").write_text("2000000\n")  # 1 J to the end, 2 J after it
    (folder / "intel-rapl:0:1" / "energy_uj").write_text("500000\n")
    (folder / "intel-rapl:1" / "energy_uj").write_text("900000\n")
    assert meter.read_joules() == pytest.approx(3.5)
    assert meter.read_joules() == pytest.approx(3.5)
    meter.close()


def test_rapl_that_root_alone_may_read_says_so(tmp_path, monkeypatch):
    rapl_zone(tmp_path / "powercap", "intel-rapl:0", "package-0", 1)
    read_text = Path.read_text

    def refuse(self, *arguments, **named):
        if self.name == "energy_uj":
            raise PermissionError(13, "Permission denied")
        return read_text(self, *arguments, **named)

    monkeypatch.setattr(Path, "read_text", refuse)
    meter, reason = open_here(tmp_path)
    assert meter is None
    assert "root alone here: permission denied" in reason
