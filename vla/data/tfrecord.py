"""TensorFlow's files of records, and the `tf.train.Example` in them, without TensorFlow.

A record is its length (8 bytes, little-endian), a checksum of that, the content, and a checksum of that. An
Example is a protocol buffer: a map from names to lists of bytes, of float32 or of int64.
"""

import struct
from collections.abc import Iterator
from pathlib import Path

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from vla.data.episodes import DataError

# The types of a protocol buffer's fields.
VARINT, FIXED64, LENGTH, FIXED32 = 0, 1, 2, 5
# Largest record that is read [bytes].
LARGEST = 1 << 31

Values = list[bytes] | NDArray[np.float32] | NDArray[np.int64]


def records(path: Path) -> Iterator[bytes]:
    """Read a file record by record.

    Raises:
        DataError: the file is missing, cut short, or a checksum is wrong.
    """
    try:
        with path.open("rb") as file:
            number = 0
            while head := file.read(12):
                where = f"{path}: record {number}"
                length = _checked(head, 8, where)
                size = struct.unpack("<Q", length)[0]
                if size > LARGEST:
                    raise DataError(f"{where} has {size} bytes, more than {LARGEST}")
                yield _checked(file.read(size + 4), size, where)
                number += 1
    except FileNotFoundError:
        raise DataError(f"{path} is missing") from None


def example(record: bytes) -> dict[str, Values]:
    """Read an Example's features.

    Raises:
        DataError: the record is no Example.
    """
    found: dict[str, Values] = {}
    for features in _fields(record, 1):
        for entry in _fields(features, 1):
            name, value = b"".join(_fields(entry, 1)), b"".join(_fields(entry, 2))
            found[name.decode()] = _values(value)
    return found


def _checked(data: bytes, size: int, where: str) -> bytes:
    """Return the first `size` bytes, if the checksum behind them is theirs."""
    if len(data) != size + 4:
        raise DataError(f"{where} is cut short")
    content, (given,) = data[:size], struct.unpack("<I", data[size:])
    crc = google_crc32c.value(content)
    masked = ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF
    if masked != given:
        raise DataError(f"{where} is damaged: its checksum is {masked:08x}, the file says {given:08x}")
    return content


def _values(feature: bytes) -> Values:
    """Return the one list of a Feature."""
    for number, _, content in _all_fields(feature):
        if number == 1:
            return _fields(content, 1)
        if number == 2:
            return np.frombuffer(b"".join(_fields(content, 1)), "<f4")
        if number == 3:
            return np.array(_integers(content), np.int64)
    return []


def _integers(content: bytes) -> list[int]:
    """Return the numbers of an Int64List, packed or one by one."""
    numbers: list[int] = []
    for number, kind, value in _all_fields(content):
        if number != 1:
            continue
        place = 0
        while place < len(value):
            integer, place = _varint(value, place)
            numbers.append(integer - (1 << 64) if integer >= 1 << 63 else integer)
        if kind == VARINT and not value:
            raise DataError("the record is no tf.train.Example")
    return numbers


def _fields(message: bytes, wanted: int) -> list[bytes]:
    """Return the contents of all fields of a number."""
    return [content for number, _, content in _all_fields(message) if number == wanted]


def _all_fields(message: bytes) -> Iterator[tuple[int, int, bytes]]:
    """Yield number, type and content of a message's fields; a varint's content are its own bytes."""
    place = 0
    while place < len(message):
        key, place = _varint(message, place)
        number, kind = key >> 3, key & 7
        if kind == LENGTH:
            size, place = _varint(message, place)
        elif kind in (FIXED64, FIXED32):
            size = 8 if kind == FIXED64 else 4
        elif kind == VARINT:
            size = _varint(message, place)[1] - place
        else:
            raise DataError("the record is no tf.train.Example")
        if place + size > len(message):
            raise DataError("the record is no tf.train.Example: a field is cut short")
        yield number, kind, message[place : place + size]
        place += size


def _varint(data: bytes, place: int) -> tuple[int, int]:
    """Return a number of up to 64 bits, and where it ends."""
    value = 0
    for index in range(10):
        if place + index >= len(data):
            break
        byte = data[place + index]
        value |= (byte & 127) << (7 * index)
        if byte < 128:
            return value & 0xFFFFFFFFFFFFFFFF, place + index + 1
    raise DataError("the record is no tf.train.Example: a number is cut short")
