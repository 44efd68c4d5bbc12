import numpy as np
import pytest

from edgekiln.export.audits.engine_layers.layer import EngineLayer
from edgekiln.export.audits.engine_layers.rtx_plan import parse_rtx_plan

GRAPH_TEXT = b"""header {
  version = 5
  tf32=1
}
descriptors {
  tensor={ alignment=128 dims={ 2 4 64 64 } mem_prop=0 name="x" offset=0 rank0=0 strides={ 4 1 } type=int8 }
  tensor={ alignment=128 dims={ 8 4 3 3 } name="w" offset=0 rank0=0 type=int8 }
  tensor={ alignment=128 dims={ 1 } name="alpha" offset=0 rank0=1 type=float }
  sub_tensor={ base="x" name="y" offset=0 type=float }
}
main {
 label bb1:
  corrltn={ name="/net/a/Conv" output={"y" } input={"x" "w" "alpha" } stream=0 relu=false layers="[ONNX Layer: /net/a/Conv]\x1f[ONNX Layer: a_DQ]" }
  function={ name=__myl_MulCast fqn=__myl_MulCast_0x1 input_args={ "alpha" "y" } output_args={ "x" } layers="[ONNX Layer: /net/a/Conv]" }
}
"""  # noqa: E501


def test_graph_text_of_a_plan_is_read_between_any_bytes():
    found = parse_rtx_plan(b"vtrt\0\0\xff" + GRAPH_TEXT + b"\x03\0\0rest" + GRAPH_TEXT)
    assert len(found.kernels) == 4
    assert found.tf32
    assert found.kernels[0] == EngineLayer(
        "/net/a/Conv", "corrltn", ("/net/a/Conv", "a_DQ"), ("int8", "int8", "fp32"), ("fp32",), None
    )
    assert found.kernels[1].name == "__myl_MulCast"


def test_graph_text_of_a_further_profile_is_told_by_the_names_of_its_tensors():
    second = GRAPH_TEXT.replace(b'"y"', b'"y [profile 1].1_9"').replace(
        b'"/net/a/Conv" output', b'"/net/a/Conv [profile 1]" output'
    )
    found = parse_rtx_plan(b"vtrt" + GRAPH_TEXT + b"\0" + second)
    assert [(k.profile, k.origins[:1], k.outputs) for k in found.kernels if k.kind == "corrltn"] == [
        (0, ("/net/a/Conv",), ("fp32",)),
        (1, ("/net/a/Conv",), ("fp32",)),
    ]
    assert [k.profile for k in found.kernels if k.kind == "function"] == [0, 1]


@pytest.mark.parametrize(
    "plan",
    [
        b"",
        b"ftrt" + bytes(1000),
        b"header {\n",
        b"header {\n" * 200_000,
        b'header {\n tensor={ name="' + b' name="a" ' * 200_000,
        b"header {\n corrltn={ name=" + b'"' * 200_000,
        np.random.default_rng(0).bytes(1_000_000),
    ],
)
def test_other_bytes_give_no_evidence_and_take_no_time(plan):
    found = parse_rtx_plan(plan)
    assert found is None or found.kernels[0].inputs == ()


def test_cut_text_gives_no_more_than_is_there():
    for length in range(0, len(GRAPH_TEXT), 7):
        found = parse_rtx_plan(GRAPH_TEXT[:length])
        assert found is None or len(found.kernels) <= 2
