"""A clock that tests move, and sources of power readings that are files in a temporary folder."""

from edgekiln.benchmarks.costs.energy.sources import open_meter


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now

    def pass_by(self, seconds):
        self.now += seconds


def open_here(tmp_path, device="cpu", **arguments):
    folders = {"hwmon": tmp_path / "hwmon", "powercap": tmp_path / "powercap"}
    return open_meter(device, **folders, **{"tegrastats": str(tmp_path / "absent"), **arguments})


def write_files(folder, **files):
    folder.mkdir(parents=True)
    for name, value in files.items():
        (folder / name).write_text(f"{value}\n")
