"""SentencePiece's `.model` files as tokenizers: the protobuf is read here, and nothing of it is executed.

Read are models of Gemma's kind, PaliGemma's among them: byte pair encoding with the bytes of unknown
characters, of a text that only has its spaces escaped. See sentencepiece_model.proto of
https://github.com/google/sentencepiece for the fields, and bpe_model.cc for the order of merges.
"""

import atexit
import shutil
import struct
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import tokenizers
from tokenizers import AddedToken, decoders, models, normalizers, processors

from export.errors import ExportError

SUFFIX = ".model"
SPACE = "▁"
# Kinds of pieces.
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
# Fields of the model, of a piece, of the trainer's and the normaliser's specification.
PIECES, TRAINER, NORMALIZER = 1, 2, 3
TEXT, SCORE, KIND = 1, 2, 3
MODEL_TYPE, BYTE_FALLBACK, BOS_ID = 3, 35, 41
CHARSMAP, DUMMY_PREFIX, REMOVE_SPACES, ESCAPE_SPACES = 2, 3, 4, 5
BPE = 2
# Wire types.
VARINT, FIXED64, LENGTH, FIXED32 = 0, 1, 2, 5
Value = int | bytes


@dataclass(frozen=True)
class Piece:
    """An entry of the vocabulary."""

    text: str
    score: float
    kind: int


def as_json(path: Path) -> Path:
    """Return a `tokenizers` JSON file of a model; it is gone when the process ends.

    Raises:
        ExportError: it is none, or of a kind that is not read.
    """
    folder = Path(tempfile.mkdtemp(prefix="tokenizer-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    read(path).save(str(folder / "tokenizer.json"))
    return folder / "tokenizer.json"


def read(path: Path) -> tokenizers.Tokenizer:
    """Return the tokenizer that a model is; it puts `bos` before a text.

    Raises:
        ExportError: it is none, or of a kind that is not read.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ExportError(f"{path} is missing") from error
    try:
        model = _fields(data)
        trainer, normalizer = (_only(model, field) for field in (TRAINER, NORMALIZER))
        pieces = [_piece(_message(value)) for value in model.get(PIECES, [])]
    except (ValueError, struct.error, IndexError) as error:
        raise ExportError(f"{path} is no SentencePiece model: {error}") from error
    if not pieces:
        raise ExportError(f"{path} is no SentencePiece model: it has no pieces")
    _check_kind(path, trainer, normalizer)
    _check_pieces(path, pieces)
    bos = _number(trainer, BOS_ID, 1)
    if not 0 <= bos < len(pieces):
        raise ExportError(f"{path} has no piece that begins a text")
    return _tokenizer(pieces, bos)


def _check_kind(path: Path, trainer: dict[int, list[Value]], normalizer: dict[int, list[Value]]) -> None:
    faults = {
        "it is no byte pair encoding": _number(trainer, MODEL_TYPE, 1) != BPE,
        "it has no bytes for unknown characters": not _number(trainer, BYTE_FALLBACK, 0),
        "it changes characters": any(normalizer.get(CHARSMAP, [])),
        "it puts a space before a text": bool(_number(normalizer, DUMMY_PREFIX, 1)),
        "it removes spaces": bool(_number(normalizer, REMOVE_SPACES, 1)),
        "it does not escape spaces": not _number(normalizer, ESCAPE_SPACES, 1),
    }
    found = [fault for fault, there in faults.items() if there]
    if found:
        raise ExportError(f"{path} is not of PaliGemma's kind: {', '.join(found)}")


def _check_pieces(path: Path, pieces: list[Piece]) -> None:
    texts = {piece.text for piece in pieces}
    if len(texts) != len(pieces):
        raise ExportError(f"{path} has a piece twice")
    if any(piece.kind == UNUSED for piece in pieces):
        raise ExportError(f"{path} has unused pieces, which are not read")
    if sum(piece.kind == BYTE for piece in pieces) != 256 or sum(p.kind == UNKNOWN for p in pieces) != 1:
        raise ExportError(f"{path} has not one unknown piece and one of each byte")
    lone = {piece.text for piece in pieces if piece.kind == NORMAL and len(piece.text) == 1}
    for piece in pieces:
        if piece.kind == NORMAL and not lone.issuperset(piece.text):
            raise ExportError(f"{path} has a piece {piece.text!r}, and none of each of its characters")


def _tokenizer(pieces: list[Piece], bos: int) -> tokenizers.Tokenizer:
    vocabulary = {piece.text: number for number, piece in enumerate(pieces)}
    unknown = next(piece.text for piece in pieces if piece.kind == UNKNOWN)
    found = tokenizers.Tokenizer(
        models.BPE(vocabulary, _merges(pieces), unk_token=unknown, fuse_unk=True, byte_fallback=True)
    )
    found.normalizer = normalizers.Replace(" ", SPACE)
    # The longest one that begins at a place of the escaped text is taken before anything is merged.
    found.add_tokens([AddedToken(p.text, normalized=True) for p in pieces if p.kind == USER_DEFINED])
    start = pieces[bos].text
    found.post_processor = processors.TemplateProcessing(single=f"{start} $A", special_tokens=[(start, bos)])
    found.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    return found


def _merges(pieces: list[Piece]) -> list[tuple[str, str]]:
    """Return every pair that makes a piece: those of the best piece first, the longest first half first."""
    known = {piece.text for piece in pieces if piece.kind == NORMAL}
    ordered = sorted((piece for piece in pieces if piece.kind == NORMAL), key=lambda piece: -piece.score)
    return [
        (piece.text[:place], piece.text[place:])
        for piece in ordered
        for place in range(len(piece.text) - 1, 0, -1)
        if piece.text[:place] in known and piece.text[place:] in known
    ]


def _piece(fields: dict[int, list[Value]]) -> Piece:
    (text,) = fields.get(TEXT, [b""])
    (score,) = fields.get(SCORE, [struct.pack("<f", 0)])
    if not isinstance(text, bytes) or not isinstance(score, bytes):
        raise ValueError("a piece has no text or score")
    return Piece(text.decode(), struct.unpack("<f", score)[0], _number(fields, KIND, NORMAL))


def _only(fields: dict[int, list[Value]], field: int) -> dict[int, list[Value]]:
    """Return the fields of the one message in a field."""
    found = fields.get(field, [])
    if len(found) != 1:
        raise ValueError(f"it has field {field} {len(found)} times")
    return _message(found[0])


def _message(value: Value) -> dict[int, list[Value]]:
    if not isinstance(value, bytes):
        raise ValueError("a number stands where a message must")
    return _fields(value)


def _number(fields: dict[int, list[Value]], field: int, default: int) -> int:
    """Return a number or a truth value, the last one of a field."""
    value = fields.get(field, [default])[-1]
    return value if isinstance(value, int) else default


def _fields(data: bytes) -> dict[int, list[Value]]:
    """Return the values of a message of protobuf by their field's number."""
    found: dict[int, list[Value]] = {}
    for field, value in _values(data):
        found.setdefault(field, []).append(value)
    return found


def _values(data: bytes) -> Iterator[tuple[int, Value]]:
    place = 0
    while place < len(data):
        tag, place = _varint(data, place)
        field, wire = tag >> 3, tag & 7
        if wire == VARINT:
            value, place = _varint(data, place)
            yield field, value
            continue
        if wire == LENGTH:
            size, place = _varint(data, place)
        elif wire in (FIXED32, FIXED64):
            size = 4 if wire == FIXED32 else 8
        else:
            raise ValueError(f"wire type {wire}")
        if place + size > len(data):
            raise ValueError("it is cut short")
        yield field, data[place : place + size]
        place += size


def _varint(data: bytes, place: int) -> tuple[int, int]:
    """Return a number, and the place behind it."""
    number = 0
    for shift in range(0, 70, 7):
        byte = data[place]
        place += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number, place
    raise ValueError("a number has no end")
