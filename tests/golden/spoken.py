"""Texts that both sides draw alike, to compare tokenizers on: words, code, runs, characters of any kind."""

import random

WORDS = [
    *("pick", "up", "the", "red", "cube,", "open", "drawer", "2", "and", "close", "it", "Stapel", "Würfel"),
    *("übereinander", "naïve", "café", "机器人", "红色", "方块", "拿起来", "ロボット", "подними", "куб"),
    *("⚙", "🤖", "👩\u200d🚀", "é", "ﬁ", "½", "_", "__", "=", "====", "--", "----", "▁", "▁▁"),
    *("<loc0017>", "<bos>", "<unk>", "<0x41>", "</s>", "aaaa", "aaaaa", "abababab"),
    *("2026-11-27", "3.14159", "0x1F", "1,000,000"),
]
RUNS = ("a", "ab", "aab", "=", "-", ".", " ", "\n", "_", "1", "x", "▁", "an", "ana")
SPACES = (" ", "  ", "   ", "     ", "\t", "\n", "\n\n", "\r\n", "\u00a0", "\u3000", "")


def texts(count: int) -> list[str]:
    """Return so many texts, each of its own kind in turn."""
    chosen = random.Random(16)
    kinds = (_words, _code, _runs, _any, _close)
    return [kinds[number % len(kinds)](chosen) for number in range(count)]


def _words(chosen: random.Random) -> str:
    return "".join(chosen.choice(WORDS) + chosen.choice(SPACES) for _ in range(chosen.randint(1, 12)))


def _code(chosen: random.Random) -> str:
    lines = [
        " " * chosen.randint(0, 12)
        + f"{chosen.choice(WORDS)}({chosen.randint(0, 9999)}, '{chosen.choice(WORDS)}')"
        for _ in range(chosen.randint(1, 4))
    ]
    return "\n".join(lines)


def _runs(chosen: random.Random) -> str:
    parts = (chosen.choice(RUNS) * chosen.randint(1, 17) for _ in range(chosen.randint(1, 6)))
    return "".join(parts)


def _any(chosen: random.Random) -> str:
    """Characters of all planes, without those that UTF-8 can't hold, and without NUL."""
    ranges = ((1, 0x7F), (0x80, 0x24F), (0x300, 0xD7FF), (0xE000, 0xFFFD), (0x10000, 0x10FFFF))
    return "".join(chr(chosen.randint(*chosen.choice(ranges))) for _ in range(chosen.randint(1, 20)))


def _close(chosen: random.Random) -> str:
    """Letters of few kinds, in which many pieces overlap."""
    return "".join(chosen.choice("aeinrst ") for _ in range(chosen.randint(1, 40)))
