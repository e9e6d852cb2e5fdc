"""SentencePiece's model files: the numbers that the library itself gives, and what is refused in one line."""

import json
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from golden.folders import HERE, read_pi, rebuilt
from golden.spoken import texts

from export.errors import ExportError
from export.foreign import sentencepiece

GOLDEN = HERE / "sentencepiece"
LARGE, SMALL = GOLDEN / "large.model", GOLDEN / "small.model"


@pytest.fixture(scope="module")
def recorded() -> dict[str, Any]:
    return json.loads((GOLDEN / "ids.json").read_text())


def test_texts_get_the_librarys_numbers(recorded: dict[str, Any]) -> None:
    drawn = texts(len(recorded["crc32"]))

    found = sentencepiece.read(LARGE).encode_batch(drawn)

    (bos,) = {encoded.ids[0] for encoded in found}
    numbers = [zlib.crc32(json.dumps(encoded.ids[1:]).encode()) for encoded in found]
    differing = [
        text for text, got, truth in zip(drawn, numbers, recorded["crc32"], strict=True) if got != truth
    ]
    assert bos == 2
    assert len(drawn) == 4000
    assert not differing, f"{len(differing)}, the first is {differing[0]!r}"


def test_a_pi0_reads_commands_as_openpi_does(recorded: dict[str, Any], tmp_path: Path) -> None:
    source = read_pi(rebuilt("pi0", tmp_path), tokenizer=SMALL)
    reader = source.command_tokenizer()
    assert reader

    for command, truth in recorded["commands"].items():
        ids, mask = reader(command)
        assert ids[: mask.sum()].tolist() == truth, command
    assert source.tokenizer_file
    assert source.tokenizer_file.suffix == ".json"


def test_a_model_of_more_pieces_is_of_another_policy(tmp_path: Path) -> None:
    with pytest.raises(
        ExportError, match=r"has 1400 entries and the policy knows 319: it is of another model$"
    ):
        read_pi(rebuilt("pi0", tmp_path), tokenizer=LARGE)


def test_text_becomes_text_again() -> None:
    reader = sentencepiece.read(LARGE)

    for text in ("pick up  the red cube", "Würfel ⚙ 机器人", "a\n\n  b"):
        assert reader.decode(reader.encode(text).ids[1:]) == text


def varint(number: int) -> bytes:
    found = b""
    while number > 0x7F:
        found += bytes([number & 0x7F | 0x80])
        number >>= 7
    return found + bytes([number])


def field(number: int, value: int | bytes | float) -> bytes:
    """Return one field of a protobuf message."""
    if isinstance(value, bytes):
        return varint(number << 3 | 2) + varint(len(value)) + value
    if isinstance(value, float):
        return varint(number << 3 | 5) + struct.pack("<f", value)
    return varint(number << 3) + varint(value)


PIECES = [("<unk>", 2), ("<bos>", 3), *((f"<0x{byte:02X}>", 6) for byte in range(256)), ("a", 1), ("b", 1)]
TRAINER = {3: 2, 35: 1, 41: 1}
NORMALIZER = {3: 0, 4: 0}


def model(
    pieces: list[tuple[str, int]] = PIECES,
    trainer: dict[int, int] = TRAINER,
    normalizer: dict[int, int | bytes] | None = None,
) -> bytes:
    """Return a model's bytes; each piece is worth less than the one before."""
    found = b""
    for place, (text, kind) in enumerate(pieces):
        found += field(1, field(1, text.encode()) + field(2, float(-place)) + field(3, kind))
    found += field(2, b"".join(field(*pair) for pair in trainer.items()))
    return found + field(3, b"".join(field(*pair) for pair in (normalizer or NORMALIZER).items()))


def test_a_model_written_by_hand_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.model"
    path.write_bytes(model([*PIECES, ("ab", 1), ("aba", 1), ("\n", 4)]))

    found = sentencepiece.read(path)

    assert found.encode("abaab\ncé").tokens == ["<bos>", "aba", "ab", "\n", "<0x63>", "<0xC3>", "<0xA9>"]


BROKEN: dict[str, tuple[Callable[[], bytes], str]] = {
    "empty": (lambda: b"", r"is no SentencePiece model: it has field 2 0 times$"),
    "a JSON file": (lambda: b'{"model": {"type": "BPE"}}', r"is no SentencePiece model: wire type 3$"),
    "cut short": (lambda: model()[:-3], r"is no SentencePiece model: it is cut short$"),
    "no pieces": (lambda: model([]), r"is no SentencePiece model: it has no pieces$"),
    "unigram": (
        lambda: model(trainer=TRAINER | {3: 1}),
        r"is not of PaliGemma's kind: it is no byte pair encoding$",
    ),
    "no bytes": (lambda: model(trainer=TRAINER | {35: 0}), r"kind: it has no bytes for unknown characters$"),
    "bytes missing": (lambda: model(PIECES[:9]), r"has not one unknown piece and one of each byte$"),
    "changed characters": (
        lambda: model(normalizer=NORMALIZER | {2: b"nfkc"}),
        r"kind: it changes characters$",
    ),
    "spaces": (
        lambda: model(normalizer={3: 1, 4: 1}),
        r"PaliGemma's kind: it puts a space before a text, it removes spaces$",
    ),
    "twice": (lambda: model([*PIECES, ("a", 1)]), r"has a piece twice$"),
    "unused": (lambda: model([*PIECES, ("c", 5)]), r"has unused pieces, which are not read$"),
    "lost letter": (
        lambda: model([*PIECES, ("ac", 1)]),
        r"has a piece 'ac', and none of each of its characters$",
    ),
    "no begin": (lambda: model(trainer=TRAINER | {41: 999}), r"has no piece that begins a text$"),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_a_broken_model_is_one_line(tmp_path: Path, fault: str) -> None:
    data, message = BROKEN[fault]
    path = tmp_path / "tokenizer.model"
    path.write_bytes(data())

    with pytest.raises(ExportError, match=message) as refused:
        sentencepiece.as_json(path)

    assert "\n" not in str(refused.value)


def test_a_missing_model_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"none\.model is missing$"):
        read_pi(rebuilt("pi0", tmp_path), tokenizer=tmp_path / "none.model")
