"""The contract as stored: canonical, complete, and refused when it is anything else."""

import json
from dataclasses import fields, replace

import pytest

from edgekiln.runtime.contract import SHARED_NORMALIZATION, Contract, Normalization
from edgekiln.runtime.errors import ContractError, ExitCode, UsageError

FULL = Contract(
    height=31,
    width=29,
    resize="shorter-side",
    shorter_side=40,
    interpolation="bicubic",
    normalization=Normalization((123.675, 116.28, 103.53), (58.395, 57.12, 57.375)),
    classes=("été", "winter 冬"),
    background=(1, 2, 3),
    sensor_bits=12,
)
CHANGED = {
    "height": 30,
    "width": 30,
    "resize": "squash",  # with shorter_side=None: the one needs the other
    "shorter_side": 41,
    "interpolation": "lanczos",
    "normalization": SHARED_NORMALIZATION,
    "classes": ("winter 冬", "été"),
    "background": (1, 2, 4),
    "sensor_bits": 10,
}


@pytest.mark.parametrize("contract", [FULL, Contract(height=1, width=8192, classes=("a", "b"))])
def test_json_round_trip_gives_an_equal_contract_and_the_same_bytes(contract):
    again = Contract.from_json(contract.to_json())
    assert again == contract
    assert again.to_json() == contract.to_json()
    assert Contract.from_dict(json.loads(json.dumps(contract.to_dict()))) == contract


def test_json_is_canonical_and_strict():
    def refuse(token):
        raise AssertionError(token)

    values = json.loads(FULL.to_json(), parse_constant=refuse)
    assert FULL.to_json() == json.dumps(values, sort_keys=True, separators=(",", ":"))


def test_equal_contracts_have_equal_digests():
    # 127 and 127.0 are equal numbers but different JSON.
    integers = Contract(
        height=2, width=2, classes=("a", "b"), normalization=Normalization((127,) * 3, (128,) * 3)
    )
    floats = Contract(height=2, width=2, classes=("a", "b"))
    assert integers == floats
    assert integers.digest == floats.digest == Contract.from_json(integers.to_json()).digest


def test_changes_cover_every_field():
    assert {field.name for field in fields(Contract)} == set(CHANGED)


@pytest.mark.parametrize("name", CHANGED)
def test_digest_changes_with_each_field(name):
    also = {"shorter_side": None} if name == "resize" else {}
    assert replace(FULL, **{name: CHANGED[name]}, **also).digest != FULL.digest
    assert replace(FULL, **{name: getattr(FULL, name)}).digest == FULL.digest


def test_digest_is_the_same_on_every_machine():
    # A changed digest means that stored checkpoints and bundles no longer match: that needs a new schema.
    digest = Contract(height=2, width=3, classes=("a", "b")).digest
    assert digest == "4c3b14885ae87dadb2c7b6db03cb1edaf13a54694ba4ebb4f028d613f6fe6f18"


def test_the_bits_of_a_sensor_are_left_out_of_the_json_where_there_are_none():
    plain = Contract(height=2, width=3, classes=("a", "b"))
    assert "sensor_bits" not in plain.to_json()
    assert Contract.from_json(plain.to_json()).sensor_bits is None
    stored = json.loads(replace(plain, sensor_bits=12).to_json())
    assert stored.pop("sensor_bits") == 12
    assert stored == plain.to_dict()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"height": 0}, "1 to 8192 pixels, got 0 x 29"),
        ({"width": 8193}, "1 to 8192 pixels, got 31 x 8193"),
        ({"resize": "stretch"}, "Unknown resize rule 'stretch'; known: squash, shorter-side"),
        ({"resize": "squash"}, "shorter_side has no meaning"),
        ({"shorter_side": None}, "needs shorter_side >= 31, got None"),
        ({"shorter_side": 30}, "needs shorter_side >= 31, got 30"),
        ({"interpolation": "box"}, "Unknown interpolation 'box'; known: nearest, bilinear"),
        ({"classes": ("a",)}, r"two or more distinct class names, got \['a'\]"),
        ({"classes": ("a", "b", "a")}, "two or more distinct"),
        ({"classes": ("a", "b\udcff")}, r"class name 'b\\udcff' cannot be written as UTF-8"),
        ({"background": (0, 0, 256)}, "three values from 0 to 255"),
        ({"background": (0, 0)}, "three values from 0 to 255"),
        ({"background": (0, 0, -1)}, "three values from 0 to 255"),
        ({"sensor_bits": 7}, "sensor_bits must be a whole number from 8 to 16, got 7"),
        ({"sensor_bits": 17}, "from 8 to 16, got 17"),
    ],
)
def test_bad_values_are_refused(change, message):
    with pytest.raises(UsageError, match=message):
        replace(FULL, **change)
    stored = {**FULL.to_dict(), **json.loads(json.dumps(change))}
    with pytest.raises(ContractError, match=message):
        Contract.from_dict(stored)


@pytest.mark.parametrize(
    ("mean", "std"),
    [
        ((0.0, 0.0), (1.0, 1.0, 1.0)),
        ((0.0,) * 3, (1.0,) * 4),
        ((0.0,) * 3, (1.0, 0.0, 1.0)),
        ((0.0,) * 3, (1.0, -1.0, 1.0)),
        ((0.0,) * 3, (1.0, float("nan"), 1.0)),
        ((0.0,) * 3, (1.0, float("inf"), 1.0)),
        ((float("nan"), 0.0, 0.0), (1.0,) * 3),
        ((0.0, float("-inf"), 0.0), (1.0,) * 3),
    ],
)
def test_a_normalization_that_is_not_three_finite_means_and_positive_stds_is_refused(mean, std):
    with pytest.raises(UsageError, match="three finite means and three finite positive stds"):
        Normalization(mean, std)


@pytest.mark.parametrize("version", [2, 0, None, "1", True, 1.0])
def test_another_schema_is_refused_and_told(version):
    with pytest.raises(ContractError, match=f"schema version {version!r}; this edgekiln reads 1") as caught:
        Contract.from_dict({**FULL.to_dict(), "schema_version": version})
    assert caught.value.exit_code == ExitCode.UNTRUSTED == 4
    assert "edgekiln version that wrote it" in caught.value.hint


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not JSON"),
        ("{", "not JSON"),
        ("\x00\xff", "not JSON"),
        ("[" * 100_000, "not JSON"),  # deeper than the parser's stack
        ("[]", "not a JSON object"),
        ("3", "not a JSON object"),
        ("null", "not a JSON object"),
        ("{}", "schema version None"),
    ],
)
def test_junk_is_refused(text, message):
    with pytest.raises(ContractError, match=message) as caught:
        Contract.from_json(text)
    assert caught.value.exit_code == 4


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("height", "31"),
        ("height", 31.0),
        ("height", True),
        ("height", None),
        ("width", [29]),
        ("resize", None),
        ("resize", ["squash"]),
        ("shorter_side", "40"),
        ("shorter_side", 40.0),
        ("interpolation", 1),
        ("classes", "ab"),
        ("classes", {"a": 0, "b": 1}),
        ("classes", ["a", 1]),
        ("classes", None),
        ("background", "123"),
        ("background", ["1", "2", "3"]),
        ("background", [1.5, 2, 3]),
        ("background", [True, 2, 3]),
        ("background", [float("inf"), 2, 3]),
        ("background", 0),
        ("sensor_bits", None),
        ("sensor_bits", 12.0),
        ("sensor_bits", True),
        ("sensor_bits", "12"),
        ("normalization", None),
        ("normalization", [[0, 0, 0], [1, 1, 1]]),
        ("normalization", {"mean": [0, 0, 0]}),
        ("normalization", {"mean": ["0", 0, 0], "std": [1, 1, 1]}),
        ("normalization", {"mean": "000", "std": "111"}),
        ("normalization", {"mean": [10**400, 0, 0], "std": [1, 1, 1]}),
        ("normalization", {"mean": [0, 0, 0], "std": [1, 1, True]}),
        ("normalization", {"mean": [0, 0, 0], "std": [1, 1, 1], "eps": 1}),
    ],
)
def test_wrong_types_are_refused(name, value):
    with pytest.raises(ContractError, match="stored contract is not valid") as caught:
        Contract.from_dict({**FULL.to_dict(), name: value})
    assert caught.value.exit_code == 4


@pytest.mark.parametrize("name", [name for name in FULL.to_dict() if name != "sensor_bits"])
def test_each_missing_field_is_refused(name):
    values = FULL.to_dict()
    del values[name]
    with pytest.raises(ContractError, match=name.replace("_", "[ _]")):
        Contract.from_dict(values)


def test_an_unknown_field_is_refused():
    with pytest.raises(ContractError, match="gamma"):
        Contract.from_dict({**FULL.to_dict(), "gamma": 2.2})
