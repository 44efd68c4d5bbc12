"""Nothing is sent: libraries that report home by default are told not to before they are loaded."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from edgekiln.runtime.telemetry import OPT_OUTS, refuse_telemetry

PREDICT = """
import json, os, sys
import edgekiln.runtime as ek
with ek.load(sys.argv[1], variant=sys.argv[2]) as classifier:
    classifier.session.run(__import__("numpy").zeros((1, *classifier.session.frame_shape, 3), "uint8"))
print(json.dumps({name: os.environ.get(name) for name in json.loads(sys.argv[3])}))
"""
QUANTIZER = """
import json, os, sys
from edgekiln.runtime.extras import import_extra
import_extra("onnxruntime.quantization", "onnx")
print(json.dumps({name: os.environ.get(name) for name in json.loads(sys.argv[1])}))
"""


def run_in_empty_home(code: str, home: Path, *arguments: str, **settings: str) -> dict[str, str | None]:
    """The opt-outs as a fresh process sees them that was started without any."""
    environment = {name: value for name, value in os.environ.items() if name not in OPT_OUTS}
    for name in ("XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME"):
        environment.pop(name, None)
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env=environment | {"HOME": str(home)} | settings,
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout)


def test_a_prediction_leaves_no_trace_in_the_home_folder(tiny_run, tmp_path):
    # onnxruntime's telemetry begins with a device identifier and a database of events below ~/.cache.
    names = json.dumps(sorted(OPT_OUTS))
    seen = run_in_empty_home(PREDICT, tmp_path, str(tiny_run[2].bundle), "fp32", names)
    assert seen == OPT_OUTS
    assert [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()] == []


def test_a_package_that_loads_onnxruntime_by_itself_finds_the_opt_out(tmp_path):
    assert run_in_empty_home(QUANTIZER, tmp_path, json.dumps(sorted(OPT_OUTS))) == OPT_OUTS
    assert not (tmp_path / ".cache" / "Microsoft").exists()


def test_a_setting_made_on_purpose_stays(monkeypatch):
    monkeypatch.setenv("ORT_DISABLE_TELEMETRY", "0")
    monkeypatch.delenv("HF_HUB_DISABLE_TELEMETRY", raising=False)
    refuse_telemetry()
    assert os.environ["ORT_DISABLE_TELEMETRY"] == "0"
    assert os.environ["HF_HUB_DISABLE_TELEMETRY"] == "1"
    monkeypatch.delenv("HF_HUB_DISABLE_TELEMETRY")


def test_a_process_that_had_loaded_onnxruntime_before_is_told_too(monkeypatch):
    import onnxruntime

    from edgekiln.runtime.backends.onnxruntime import import_onnxruntime

    told = []
    monkeypatch.setattr(onnxruntime, "disable_telemetry_events", lambda: told.append(True))
    import_onnxruntime("cpu")
    assert told == [True]


@pytest.mark.parametrize("name", sorted(OPT_OUTS))
def test_the_suite_itself_sends_nothing(name):
    assert os.environ[name] == OPT_OUTS[name]
