import pytest

from edgekiln.export.audits.engine_layers.datatypes import normalize_datatype, widest, width_of


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Row major linear FP32", "fp32"),
        ("Float", "fp32"),
        ("Channel major FP16 format where channel % 8 == 0", "fp16"),
        ("Half", "fp16"),
        ("DataType.HALF", "fp16"),
        ("Row major linear BFloat16 format", "bf16"),
        ("bfloat", "bf16"),
        ("Thirty-two wide channel vectorized row major Int8 format", "int8"),
        ("Row major INT8 format where column stride % 64 == 0", "int8"),
        ("Row major linear UInt8 format", "uint8"),
        ("Row major linear FP8 format", "fp8"),
        ("float8_e4m3", "fp8"),
        ("Row major linear Int32", "int32"),
        ("Row major linear Int64 format", "int64"),
        ("Row major linear BOOL", "bool"),
        ("N/A due to dynamic shapes", "unknown"),
        (None, "unknown"),
    ],
)
def test_every_spelling_of_a_datatype_has_one_name(text, expected):
    assert normalize_datatype(text) == expected


def test_an_unknown_type_has_no_width_and_makes_all_unknown():
    assert [width_of(name) for name in ("int8", "bf16", "fp32", "int64", "unknown")] == [8, 16, 32, 0, 0]
    assert widest(["int8", "fp16"]) == "fp16"
    assert widest(["int8", "unknown"]) == widest([]) == "unknown"
