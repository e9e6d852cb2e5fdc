"""Inputs that nobody thought of: seeds, changed at random places."""

import random
import struct
import zlib
from collections.abc import Callable, Sequence

# Values at which counts and lengths go wrong.
EDGES = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)
# Longest input [bytes]: the gate takes 4 MiB, most of what goes wrong needs little.
LONGEST = 256 << 10

# Makes an input of seeds and words.
Make = Callable[[Sequence[bytes], Sequence[bytes], random.Random], bytes]
Mutation = Callable[[bytearray, random.Random, Sequence[bytes]], None]


def mutated(seeds: Sequence[bytes], words: Sequence[bytes], draw: random.Random) -> bytes:
    """Change a seed at a few random places.

    Args:
        seeds: valid inputs
        words: pieces that mean something to the reader
        draw: where every choice comes from
    """
    data = bytearray(draw.choice(seeds))
    if draw.random() < 0.2:
        other = draw.choice(seeds)
        data[draw.randint(0, len(data)) :] = other[draw.randint(0, len(other)) :]
    for _ in range(draw.choice((1, 1, 2, 4, 16))):
        draw.choice(MUTATIONS)(data, draw, words)
    return bytes(data[:LONGEST])


def _flip(data: bytearray, draw: random.Random, words: Sequence[bytes]) -> None:
    if data:
        data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)


def _overwrite(data: bytearray, draw: random.Random, words: Sequence[bytes]) -> None:
    at = draw.randint(0, len(data))
    size = draw.choice((1, 2, 4, 8))
    number = draw.choice(EDGES) & ((1 << 8 * size) - 1)
    data[at : at + size] = number.to_bytes(size, draw.choice(("big", "little")))


def _cut(data: bytearray, draw: random.Random, words: Sequence[bytes]) -> None:
    at = draw.randint(0, len(data))
    del data[at : at + _length(draw)]


def _truncate(data: bytearray, draw: random.Random, words: Sequence[bytes]) -> None:
    del data[draw.randint(0, len(data)) :]


def _repeat(data: bytearray, draw: random.Random, words: Sequence[bytes]) -> None:
    at = draw.randint(0, len(data))
    piece = data[at : at + _length(draw)]
    data[at:at] = (piece * draw.choice((1, 2, 100, 10_000)))[:LONGEST]


def _insert(data: bytearray, draw: random.Random, words: Sequence[bytes]) -> None:
    at = draw.randint(0, len(data))
    data[at:at] = draw.choice(words) if words and draw.random() < 0.7 else draw.randbytes(_length(draw))


def _move(data: bytearray, draw: random.Random, words: Sequence[bytes]) -> None:
    at = draw.randint(0, len(data))
    piece = data[at : at + _length(draw)]
    del data[at : at + len(piece)]
    to = draw.randint(0, len(data))
    data[to:to] = piece


def _length(draw: random.Random) -> int:
    return draw.choice((1, 2, 3, 4, 8, 16, 64, 512, 4096))


MUTATIONS: tuple[Mutation, ...] = (
    _flip,
    _flip,
    _overwrite,
    _overwrite,
    _cut,
    _truncate,
    _repeat,
    _insert,
    _move,
)


def mutated_picture(seeds: Sequence[bytes], words: Sequence[bytes], draw: random.Random) -> bytes:
    """Change a picture; most PNGs get right checksums again: a reader looks no further than a wrong one."""
    data = mutated(seeds, words, draw)
    return with_checksums(data) if draw.random() < 0.7 else data


def with_checksums(data: bytes) -> bytes:
    """Return a PNG whose chunks have right checksums; anything else as it is."""
    if not data.startswith(b"\x89PNG\r\n\x1a\n"):
        return data
    out, at = bytearray(data), 8
    while at + 12 <= len(out):
        (size,) = struct.unpack_from(">I", out, at)
        end = at + 8 + size
        if end + 4 > len(out):
            break
        struct.pack_into(">I", out, end, zlib.crc32(out[at + 4 : end]))
        at = end + 4
    return bytes(out)
