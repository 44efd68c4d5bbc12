"""Which evidence an audit takes, and what it says where the library could not be asked. No engine is built."""

from dataclasses import replace
from pathlib import Path

import pytest
from inspector_support import FIXTURES, PRODUCTS

from edgekiln.export.engines.options import BuildOptions
from edgekiln.export.engines.tensorrt import BuiltEngine
from edgekiln.export.engines.worker_process import Inspection
from edgekiln.pipeline.device import building
from edgekiln.pipeline.device.building import EngineRequest, build_engines
from edgekiln.pipeline.workspace.progress import SilentProgress
from edgekiln.runtime.spec import Precision

FP16, FP32 = (dict.fromkeys(PRODUCTS, kind) for kind in ("fp16", "fp32"))
PLAN = """header {{
}}
tensor={{ name="x" type={kind} }}
corrltn={{ name="k" output={{"y"}} input={{"x" "w"}} layers="{origins}" }}
tensor={{ name="w" type={kind} }}
"""


def plan_of(kind):
    origins = "".join(f"[ONNX Layer: {name}]\x1f" for name in PRODUCTS)
    return b"vtrt" + PLAN.format(kind=kind, origins=origins).encode() + b"\0"


def layers_of(name):
    return Inspection((FIXTURES / f"v10_{name}.json").read_text(), None)


@pytest.fixture
def build(tmp_path, monkeypatch):
    """Build with what the library, the plan and the network say; returns the record, and whether it was inspected."""
    (tmp_path / "model.onnx").write_bytes(b"")
    request = EngineRequest(
        "x", tmp_path / "model.onnx", "tensorrt", Precision.FP16, {}, PRODUCTS, minimum_share=0.95
    )

    def build_(declared, inspection, *, plan=b"", **changes):
        asked = []
        wish = replace(request, **changes)
        options = BuildOptions(wish.flavour, wish.precision)
        engine = BuiltEngine(
            Path("engine"), plan, "", "10.3", "A GPU", options, declared, (), (), 1.0, cached=False
        )
        monkeypatch.setattr(building, "build_engine", lambda *_, **__: engine)
        monkeypatch.setattr(building, "inspect_engine", lambda *_, **__: asked.append(1) or inspection)
        return build_engines(wish, tmp_path, SilentProgress()), bool(asked)

    return build_


def test_what_is_declared_does_not_refuse_what_the_inspector_confirms(build):
    record, _ = build(FP32, layers_of("fp16"))
    assert (record["failure"], record["audit"]["evidence"], record["audit"]["share"]) == (
        None,
        "inspector",
        1,
    )


def test_inspector_refuses_what_is_declared(build):
    record, _ = build(FP16, layers_of("fp32"))
    assert "fp32 100.0%; inspector" in record["failure"]


def test_plan_of_rtx_is_asked_before_the_inspector(build):
    record, inspected = build(FP32, layers_of("fp32"), plan=plan_of("half"), flavour="tensorrt-rtx")
    assert (record["audit"]["evidence"], record["failure"], inspected) == ("rtx-plan", None, False)
    record, inspected = build(FP16, layers_of("fp16"), plan=plan_of("float"), flavour="tensorrt-rtx")
    assert "fp32 100.0%; rtx-plan" in record["failure"]
    assert not inspected


def test_inspector_is_asked_where_a_plan_of_rtx_tells_nothing(build):
    record, inspected = build(FP32, layers_of("fp16"), plan=b"vtrt", flavour="tensorrt-rtx")
    assert (record["audit"]["evidence"], inspected) == ("inspector", True)


@pytest.mark.parametrize("flavour", ["tensorrt", "tensorrt-rtx"])
def test_what_is_declared_is_asked_last_and_may_refuse(build, flavour):
    record, _ = build(FP16, Inspection(None, None), flavour=flavour)
    assert (record["audit"]["evidence"], record["uninspected"], record["notices"]) == ("declared", None, [])
    record, _ = build(FP32, Inspection(None, None), flavour=flavour)
    assert "fp32 100.0%; declared" in record["failure"]


def test_inspection_that_failed_is_told_in_the_reports_first_line(build):
    record, _ = build(FP16, Inspection(None, "no driver"))
    assert (record["audit"]["evidence"], record["uninspected"]) == ("declared", "no driver")
    assert record["notices"] == ["x was not inspected fully, and the audit may know too little: no driver"]


def test_refusal_says_what_the_inspection_lacked(build):
    weak = replace(layers_of("dynamic_shapes"), note="no execution context could be made (memory)")
    record, _ = build(FP16, weak, minimum_share=1.0, products={**PRODUCTS, "/elsewhere/Conv": 1})
    assert "wanted 100.0%" in record["failure"]
    assert record["failure"].endswith("not inspected fully: no execution context could be made (memory).")


def test_what_the_search_left_in_float_is_not_asked_of_int8_alone(build):
    changes = {"precision": Precision.INT8, "minimum_share": 0.6}
    record, _ = build(FP16, layers_of("int8_island"), **changes)
    assert "wanted 60.0%" in record["failure"]  # 49 % of its MACs are not int8
    record, _ = build(FP16, layers_of("int8_island"), **changes, kept_share=0.49)
    assert record["failure"] is None
    record, _ = build(FP16, layers_of("fp32"), minimum_share=0.5, kept_share=0.49)
    assert "wanted 50.0%" in record["failure"]
