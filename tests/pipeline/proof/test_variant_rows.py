"""What a row of the report takes from the stages that judged and timed its variant."""

import json

import pytest

from edgekiln.pipeline.proof.variant_rows import _tell_kinds
from edgekiln.pipeline.workspace.stage_files import KIND_NAME
from edgekiln.runtime.bundles.judged_with import VERDICT_KIND
from edgekiln.runtime.bundles.times import TIMES

KIND = {"architecture": "aarch64", "library": "onnxruntime", "version": "1.32"}


@pytest.mark.parametrize(
    ("benchmark", "times"),
    [
        (None, {}),
        ({TIMES: {}}, {}),  # an invalid benchmark leaves none
        ({TIMES: {"fp32": {"p50_ms": 3.0}}}, {}),
        ({TIMES: {"fp32": {"p50_ms": 3.0}, "int8": {"p50_ms": 2.0}}}, {TIMES: [{"p50_ms": 2.0}]}),
    ],
)
def test_the_verdicts_kind_is_the_evaluations_and_the_time_is_the_benchmarks(tmp_path, benchmark, times):
    (tmp_path / KIND_NAME).write_text(json.dumps(KIND))
    assert _tell_kinds(tmp_path, benchmark, "int8") == {VERDICT_KIND: KIND, **times}
