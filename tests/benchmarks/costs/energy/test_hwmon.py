import pytest
from energy_support import open_here, write_files


def test_sysfs_rails_by_name_volts_times_amperes(tmp_path):
    hwmon = tmp_path / "hwmon"
    write_files(hwmon / "hwmon0", name="coretemp", in1_label="VDD_IN", in1_input=5000, curr1_input=9999)
    write_files(
        hwmon / "hwmon1", name="ina3221",
        in1_label="VDD_GPU_SOC", in1_input=20000, curr1_input=180,
        in2_label="VDD_CPU_CV", in2_input=20000, curr2_input=40,
        in3_label="VIN_SYS_5V0", in3_input=5000, curr3_input=800,
        in7_label="sum of shunt voltages",
    )  # fmt: skip
    write_files(
        hwmon / "hwmon2", name="ina3221",
        in1_label="NC", in1_input=0, curr1_input=0,
        in2_label="VDDQ_VDD2_1V8AO", in2_input=1000, curr2_input=300,
        in3_label="SWITCHED_OFF",
    )  # fmt: skip
    meter, _ = open_here(tmp_path, "cuda")
    meter.close()
    assert meter.describe() == "board rails VDD_GPU_SOC + VDD_CPU_CV + VIN_SYS_5V0"
    assert meter._last[1] == pytest.approx(3.6 + 0.8 + 4.0)


@pytest.mark.parametrize(
    ("files", "watts"),
    [
        ({"name": "ina3221", "in1_label": "VDD_IN", "in1_input": 5000, "curr1_input": 1040}, 5.2),
        ({"name": "ina238", "in1_input": 12000, "curr1_input": 9, "power1_input": 19_800_000}, 19.8),
    ],
)
def test_the_boards_own_input_counts_alone(tmp_path, files, watts):
    write_files(tmp_path / "hwmon" / "hwmon0", **files)
    write_files(
        tmp_path / "hwmon" / "hwmon1", name="ina3221", in2_label="VDD_GPU", in2_input=5000, curr2_input=500
    )
    meter, _ = open_here(tmp_path)
    meter.close()
    assert meter.describe() in {"board rails VDD_IN", "board rails VIN"}
    assert meter._last[1] == pytest.approx(watts)
