"""Golden truth of SentencePiece: two models of PaliGemma's kind, and what they make of many texts.

`make golden-flow` runs it too, in the same environment. The larger model reads the texts of spoken.py; of
each its numbers are kept as their CRC. The smaller one has as few tokens as the golden pi0, and reads its
commands as openpi does: begun, and the end of the line for itself.
"""

import argparse
import inspect
import io
import json
import random
import textwrap
import zlib
from importlib.metadata import version
from pathlib import Path

import sentencepiece
from make_pi0 import COMMANDS
from spoken import WORDS, texts

HERE = Path(__file__).parent / "sentencepiece"
SYMBOLS = ["<mask>", *("\n" * count for count in range(1, 6)), *("▁" * count for count in range(2, 9))]
SYMBOLS += ["<table>", "</table>", "<loc0017>", "<loc0018>", "<seg001>"]
COUNT = 4000


def corpus() -> list[str]:
    """Return lines of code, of prose, of letters, and of the words that texts are made of."""
    chosen = random.Random(1)
    letters = ["".join(chosen.choice("aeinrst ") for _ in range(60)) for _ in range(200)]
    code = inspect.getsource(argparse) + inspect.getsource(textwrap)
    return [*code.splitlines(), *letters, *(" ".join(WORDS) for _ in range(20)), *list(COMMANDS) * 20]


def train(name: str, lines: list[str], size: int, symbols: list[str]) -> sentencepiece.SentencePieceProcessor:
    """Train a model as Gemma's was, and keep it."""
    model = io.BytesIO()  # a file's path would be written into the model
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=model,
        model_type="bpe",
        vocab_size=size,
        byte_fallback=True,
        character_coverage=0.9995,
        split_digits=True,
        allow_whitespace_only_pieces=True,
        normalization_rule_name="identity",
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        pad_id=0,
        eos_id=1,
        bos_id=2,
        unk_id=3,
        pad_piece="<pad>",
        eos_piece="<eos>",
        bos_piece="<bos>",
        unk_piece="<unk>",
        user_defined_symbols=symbols,
        minloglevel=2,
    )
    (HERE / f"{name}.model").write_bytes(model.getvalue())
    return sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())


def main() -> None:
    HERE.mkdir(exist_ok=True)
    large = train("large", corpus(), 1400, SYMBOLS)
    ascii_only = [command for command in COMMANDS if command.isascii()] * 9
    small = train("small", ascii_only, 310, ["\n"])
    recorded = {
        "made_with": {"sentencepiece": version("sentencepiece")},
        "crc32": [zlib.crc32(json.dumps(large.encode(text)).encode()) for text in texts(COUNT)],
        "commands": {
            command: [small.bos_id(), *small.encode(command), *small.encode("\n")] for command in COMMANDS
        },
    }
    (HERE / "ids.json").write_text(json.dumps(recorded, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
    print(f"{HERE} is made anew")
