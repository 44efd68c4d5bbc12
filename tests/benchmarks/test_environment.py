from edgekiln.benchmarks.environment import CpuTimes, describe_machine, measure_foreign_load, tool_versions


def test_machine_names_cpu_versions_and_load_but_no_host_or_path():
    machine = describe_machine()
    assert machine["cpu"]
    assert machine["cores"] >= 1
    assert {"edgekiln", "numpy", "onnxruntime", "torch"} <= set(machine["versions"])
    assert not any("/" in str(value) for key, value in machine.items() if key != "system")


def test_absent_tools_are_left_out():
    assert tool_versions(["numpy", "no-such-distribution"]).keys() == {"numpy"}


def test_steal_is_a_share_of_the_time_between_two_readings():
    passed = CpuTimes(stolen=30, idle=10, total=300) - CpuTimes(stolen=10, idle=0, total=100)
    assert passed.steal_share == 0.1
    assert CpuTimes().steal_share == 0.0


def test_foreign_load_is_a_number_of_cores():
    assert 0 <= measure_foreign_load(0.05) < 1000
