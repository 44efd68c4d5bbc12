"""Damages files: by bytes, by values of JSON, by lines of TOML, by fields of ONNX. The same seed, the same damage."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable, Iterator
from typing import Any

__all__ = ["mutate_bytes", "mutate_json", "mutate_onnx", "mutate_toml"]

_NUMBERS = (
    0,
    1,
    -1,
    2,
    127,
    128,
    255,
    256,
    2**16,
    2**31 - 1,
    -(2**31),
    2**31,
    2**32,
    2**62,
    2**63 - 1,
    -(2**63),
)
_FLOATS = (float("nan"), float("inf"), -1e308, 1e-320, 0.5)
_STRINGS = (
    "",
    "x",
    "a" * 5000,
    "../../etc/passwd",
    "/dev/zero",
    "\x00",
    "\ud83d\ude00",
    "%s{}",
    "com.microsoft",
)
_BYTES = (b"", b"\x00", b"\xff", b"\x7f", b"\x80", b"\xff\xff\xff\xff", b"\x00\x00\x00\x80", b"\xff" * 10)
_ROUNDS = (1, 1, 1, 2, 3, 6)


def mutate_bytes(data: bytes, rng: random.Random) -> bytes:
    """Flip, overwrite, cut out, repeat, insert or truncate, a few times."""
    value = bytearray(data)
    for _ in range(rng.choice(_ROUNDS)):
        at = rng.randrange(len(value) + 1)
        size = rng.choice((1, 2, 4, 8, 64, 1024))
        match rng.randrange(6):
            case 0 if at < len(value):
                value[at] ^= 1 << rng.randrange(8)
            case 1:
                value[at : at + size] = rng.randbytes(size)
            case 2:
                del value[at : at + size]
            case 3:
                value[at:at] = value[at : at + size] * rng.randrange(1, 9)
            case 4:
                value[at:at] = rng.choice(_BYTES)
            case _:
                del value[at if rng.randrange(4) == 0 else len(value) :]
    return bytes(value)


def mutate_json(data: bytes, rng: random.Random) -> bytes:
    """Replace, remove, rename or repeat values anywhere in the document."""
    document = json.loads(data)
    for _ in range(rng.choice(_ROUNDS)):
        places = list(_places(document))
        if not places:
            break
        holder, key = rng.choice(places)
        match rng.randrange(5):
            case 0 if isinstance(holder, dict):
                del holder[key]
            case 1 if isinstance(holder, dict):
                holder[rng.choice(_STRINGS)] = holder.pop(key)
            case 2 if isinstance(holder, list):
                holder.extend([holder[key]] * rng.randrange(1, 4))
            case 3:
                other, other_key = rng.choice(places)
                holder[key] = copy.deepcopy(other[other_key])
            case _:
                holder[key] = _any_value(rng)
    return json.dumps(document).encode("utf-8", "surrogatepass")


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """(container, key) of every value in a document."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in list(items):
        yield value, key
        yield from _places(inner)


def _any_value(rng: random.Random) -> Any:
    deep: Any = 1
    for _ in range(200):
        deep = [deep]
    kinds: tuple[Any, ...] = (None, True, False, [], {}, [None], {"x": 1}, deep)
    return rng.choice((rng.choice(_NUMBERS), rng.choice(_FLOATS), rng.choice(_STRINGS), rng.choice(kinds)))


def mutate_toml(data: bytes, rng: random.Random) -> bytes:
    """Remove, repeat, swap or rewrite lines; one time in four, damage bytes instead."""
    if rng.randrange(4) == 0:
        return mutate_bytes(data, rng)
    lines = data.decode().splitlines()
    for _ in range(rng.choice(_ROUNDS)):
        at, other = rng.randrange(len(lines)), rng.randrange(len(lines))
        match rng.randrange(6):
            case 0 if len(lines) > 1:
                del lines[at]
            case 1:
                lines.insert(other, lines[at])
            case 2:
                lines[at], lines[other] = lines[other], lines[at]
            case 3:
                lines[at] = f"{lines[at].partition('=')[0]}= {lines[other].partition('=')[2]}"
            case 4:
                lines.insert(
                    at, f"{rng.choice(('size', 'name', 'x', 'epochs', '[data]', '[[variants]]'))} = 1"
                )
            case _:
                lines[at] = f"{lines[at].partition('=')[0]}= {_any_toml(rng)}"
    return "\n".join(lines).encode("utf-8", "surrogatepass")


def _any_toml(rng: random.Random) -> str:
    text = json.dumps(rng.choice(_STRINGS))
    plain = ("true", "[]", "{}", "nan", "inf", "1979-05-27", "[" * 200 + "]" * 200, "0x7fffffffffffffffff")
    return rng.choice((text, str(rng.choice(_NUMBERS)), rng.choice(plain), f"[{text}, 1]"))


def mutate_onnx(data: bytes, rng: random.Random) -> bytes:
    """Change fields of a model: sizes, types, names (so that edges are cut or go in circles), whole parts."""
    import onnx

    model = onnx.load_from_string(data)
    names = [name for node in model.graph.node for name in (*node.input, *node.output)]
    for _ in range(rng.choice(_ROUNDS)):
        message = rng.choice(_shallow_first(list(_messages(model)), rng))
        if message.DESCRIPTOR.fields:
            _change_field(message, rng.choice(message.DESCRIPTOR.fields), names, rng)
    return bytes(model.SerializeToString())


def _messages(message: Any) -> Iterator[Any]:
    yield message
    for descriptor, value in message.ListFields():
        if descriptor.message_type is not None:
            for inner in value if _is_repeated(descriptor) else [value]:
                yield from _messages(inner)


def _shallow_first(messages: list[Any], rng: random.Random) -> list[Any]:
    """Nodes and attributes are many; every other time something of another kind is taken."""
    kinds = {type(message) for message in messages}
    kind = rng.choice(sorted(kinds, key=lambda k: str(k.DESCRIPTOR.name)))
    return [m for m in messages if type(m) is kind] if rng.randrange(2) else messages


def _is_repeated(descriptor: Any) -> bool:
    return bool(descriptor.is_repeated)


def _change_field(message: Any, descriptor: Any, names: list[str], rng: random.Random) -> None:
    if descriptor.message_type is not None:
        _change_messages(message, descriptor, rng)
        return
    make = _SCALARS.get(descriptor.cpp_type)
    value = (
        rng.choice(names)
        if descriptor.cpp_type == descriptor.CPPTYPE_STRING
        and descriptor.type == (descriptor.TYPE_STRING)
        and names
        and rng.randrange(2)
        else make(descriptor, rng)
        if make
        else None
    )
    try:
        if value is None or rng.randrange(8) == 0:
            message.ClearField(descriptor.name)
        elif not _is_repeated(descriptor):
            setattr(message, descriptor.name, value)
        else:
            values = getattr(message, descriptor.name)
            if values and rng.randrange(2):
                values[rng.randrange(len(values))] = value
            else:
                values.append(value)
    except (ValueError, TypeError):  # a value that this field cannot hold: no damage this time
        return


def _change_messages(message: Any, descriptor: Any, rng: random.Random) -> None:
    value = getattr(message, descriptor.name)
    if not _is_repeated(descriptor):
        message.ClearField(descriptor.name)
    elif value and rng.randrange(2):
        value.add().CopyFrom(value[rng.randrange(len(value))])
    elif value:
        del value[rng.randrange(len(value))]


def _any_text(descriptor: Any, rng: random.Random) -> Any:
    if descriptor.type == descriptor.TYPE_BYTES:
        return rng.choice(_BYTES) * rng.choice((1, 7, 300))
    return rng.choice(_STRINGS).encode("utf-8", "replace").decode()


_SCALARS: dict[int, Callable[[Any, random.Random], Any]] = {
    1: lambda _, rng: rng.choice(_NUMBERS),  # int32, int64, uint32, uint64: protobuf's cpp_type
    2: lambda _, rng: rng.choice(_NUMBERS),
    3: lambda _, rng: rng.choice(_NUMBERS),
    4: lambda _, rng: rng.choice(_NUMBERS),
    5: lambda _, rng: rng.choice(_FLOATS),
    6: lambda _, rng: rng.choice(_FLOATS),
    8: lambda _, rng: rng.choice((*range(24), 99)),
    9: _any_text,
}
