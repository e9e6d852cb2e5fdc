"""Rows of right form with wrong values: what no change of single bytes finds."""

import datetime
import math
import random
from collections.abc import Sequence

import msgspec

NAMES = (
    "image",
    "image.front",
    "image.0",
    "image.",
    "command",
    "state",
    "previous",
    "delay",
    "seed",
    "deadline_ms",
    "",
    "x",
)
VALUES: tuple[object, ...] = (
    None, True, False, 0, -1, 1, 2**31, 2**63 - 1, 2**63, 2**64 - 1, -(2**63), 0.5, -0.0, 1e308,
    5e-324, 3.5e38,
    math.nan, math.inf, -math.inf, "", " ", "0", "NaN", "null", "true", "1e999", "[]", "[1,2,3,4]", '{"a":1}',
    "[" * 5000, "9" * 5000, "\u202e\u200b", "\ufeff1", "é" * 512, "x" * 513, "\0", b"", b"\0",
    b"\xff\xfe", b"1",
    b"\xef\xbb\xbf1", b"[0,0,0,0]", b"\xff\xd8\xff", [], [[]], [None], [0, 0], [0.0] * 4,
    [[0.0] * 4] * 2, ["0"] * 4,
    [True] * 4, [1e39] * 4, [10**18] * 4, {}, {"": 0}, {"shape": 1}, msgspec.msgpack.Ext(5, b"x"),
    datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC),
)  # fmt: skip
SHAPES: tuple[object, ...] = (
    [2, 3, 3], [0, 3, 3], [-2, -3, 3], [2, 3], [2, 3, 3, 1], [2.0, 3, 3], [True, 18, 3], [2**40,
    2**40, 3], [1, 6, 3],
    [2**63, 1, 3], [3, 2, 3], [6, 1, 3], [2, 3, 1], [2, 3, 4], "2,3,3", None, [None, 3, 3], [[2], 3, 3],
)  # fmt: skip
DTYPES = ("uint8", "float32", "UINT8", "", None, 8)


def changed_row(seeds: Sequence[bytes], words: Sequence[bytes], draw: random.Random) -> bytes:
    """Change some fields of a row in MessagePack."""
    row = msgspec.msgpack.decode(draw.choice(seeds), type=dict[str, object])
    for _ in range(draw.choice((1, 1, 2, 3))):
        name = draw.choice((*row, *NAMES)) if row else draw.choice(NAMES)
        draw.choice((_replace, _replace, _inside, _inside, _drop, _picture))(row, name, draw)
    return msgspec.msgpack.encode(row)


def _replace(row: dict[str, object], name: str, draw: random.Random) -> None:
    row[name] = _value(draw)


def _drop(row: dict[str, object], name: str, draw: random.Random) -> None:
    row.pop(name, None)


def _inside(row: dict[str, object], name: str, draw: random.Random) -> None:
    """Change one value within a field, or its text."""
    value = row.get(name)
    if isinstance(value, list) and value:
        value[draw.randrange(len(value))] = _value(draw)
    elif isinstance(value, dict):
        value[draw.choice((*value, "shape", "more"))] = _value(draw)
    elif isinstance(value, str):
        at = draw.randint(0, len(value))
        row[name] = (
            value[:at]
            + chr(draw.choice((0, 7, 0x7F, 0xAD, 0x300, 0x200D, 0x2028, 0xFFFF, 0x1F600)))
            + value[at:]
        )
    elif isinstance(value, int | float):
        row[name] = draw.choice((str(value), [value], value * 1e6, -float(value)))


def _picture(row: dict[str, object], name: str, draw: random.Random) -> None:
    data = draw.choice((bytes(18), b"", bytes(17), "text", None, [0] * 18))
    row["image"] = {"shape": draw.choice(SHAPES), "dtype": draw.choice(DTYPES), "data": data}


def _value(draw: random.Random) -> object:
    """One of the values, or a deep or long one."""
    value = draw.choice(VALUES)
    for _ in range(draw.choice((0, 0, 0, 0, 1, 2, 100))):
        value = [value] if draw.random() < 0.5 else {"a": value}
    return [value] * 5000 if draw.random() < 0.01 else value
