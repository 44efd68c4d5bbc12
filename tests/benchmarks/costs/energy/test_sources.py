from energy_support import open_here, write_files


def test_a_machine_without_any_source_says_what_was_looked_for(tmp_path):
    meter, reason = open_here(tmp_path)
    assert meter is None
    assert (
        reason == "no INA3221 or INA238 power monitor that can be read; no tegrastats; no RAPL energy counter"
    )


def test_board_rails_come_before_the_counters_of_the_cpu(tmp_path):
    write_files(tmp_path / "hwmon" / "hwmon0", name="ina238", power1_input=19_800_000)
    write_files(tmp_path / "powercap" / "intel-rapl:0", name="package-0", energy_uj=1, max_energy_range_uj=10)
    meter, reason = open_here(tmp_path)
    meter.close()
    assert (meter.describe(), reason) == ("board rails VIN", "")
