"""The grammar of commands: its splits share no pattern, and training never says what is kept from it."""

import string

import numpy as np
import pytest

from vla.tabletop.commands import COLOURS, GOALS
from vla.tabletop.language import IMPOSSIBLE, KINDS, command, draw, impossible
from vla.tabletop.phrasebook import BOOK, Patterns
from vla.tabletop.vocabulary import Words, compound, names, typo, unknown, unknown_words, word

PATTERNS = {
    **{name: value for name in BOOK.__struct_fields__ if isinstance(value := getattr(BOOK, name), Patterns)},
    **{f"verbs {task}": patterns for task, patterns in BOOK.verbs.items()},
}


def words_of(text: str) -> set[str]:
    """Split into words of letters, slots left out."""
    for slot in string.ascii_lowercase:
        text = text.replace(f"{{{slot}}}", " ")
    return set("".join(letter if letter.isalpha() else " " for letter in text).split())


@pytest.mark.parametrize("name", PATTERNS)
def test_the_splits_share_no_pattern(name: str) -> None:
    patterns = PATTERNS[name]
    assert not set(patterns.train) & set(patterns.test)
    assert len(set(patterns.train)) > len(patterns.test) > 2


def test_every_word_of_a_tested_pattern_is_trained() -> None:
    trained = set[str]()
    for patterns in PATTERNS.values():
        trained |= words_of(" ".join(patterns.train))
    trained |= words_of(" ".join(form for forms in BOOK.pronouns.values() for form in forms))
    trained |= words_of(" ".join(BOOK.nouns))
    for name, patterns in PATTERNS.items():
        assert words_of(" ".join(patterns.test)) <= trained, name


def test_training_never_says_the_words_that_are_kept() -> None:
    random = np.random.default_rng(0)
    said = " ".join(draw(random, GOALS[i % 12] if i % 3 else None, "train") for i in range(6000))
    kept = {name for group in BOOK.never.values() for name in group}
    assert not kept & words_of(said)
    assert not set(unknown_words("test")) & words_of(said)
    assert not set(unknown_words("train")) & set(unknown_words("test"))
    assert len(unknown_words("train")) > 10_000


def test_some_names_of_colours_are_trained_in_plain_sentences_alone() -> None:
    random = np.random.default_rng(0)
    for kind in ("negation", "landmark"):
        said = " ".join(command(random, GOALS[i % 12], kind, "train") for i in range(2000))
        assert not set(BOOK.plain_only) & words_of(said)
    tested = " ".join(command(random, GOALS[i % 12], "negation", "test") for i in range(2000))
    assert set(BOOK.plain_only) & words_of(tested)
    assert set(BOOK.plain_only) <= {name for colour in COLOURS for name in names(colour, "train", "synonym")}


def test_typing_errors_are_split_too_and_are_no_words() -> None:
    random = np.random.default_rng(0)
    for colour in COLOURS:
        trained = {typo(Words(random, "train"), colour) for _ in range(2000)}
        tested = {typo(Words(random, "test"), colour) for _ in range(500)}
        assert not trained & tested
        assert not (trained | tested) & {colour, *BOOK.near, *unknown_words("train"), *unknown_words("test")}


def test_colours_within_other_letters_mean_nothing_and_only_training_makes_them_up() -> None:
    random = np.random.default_rng(0)
    known = {name for colour in COLOURS for name in names(colour, "train", "plain")}
    kept = {name for group in BOOK.never.values() for name in group}
    made = {compound(Words(random, "train")) for _ in range(500)}
    assert not made & (known | kept)
    assert all(any(colour in each for colour in COLOURS) for each in made)
    drawn = [unknown(Words(random, "test")) for _ in range(2000)]
    assert not any(colour in each for each in drawn for colour in COLOURS if len(colour) > 3)


def test_words_alone_name_what_they_name_in_sentences() -> None:
    random = np.random.default_rng(0)
    kept = {name for group in BOOK.never.values() for name in group}
    said = [word(Words(random, "train")) for _ in range(4000)]
    drawn = dict(said)
    assert not kept & set(drawn)
    # "here", which is much like "green", comes oftener than one word in ten thousand.
    assert said.count(("here", -1)) > 2
    for index, colour in enumerate(COLOURS):
        assert all(drawn[each] == index for each in names(colour, "train", "plain") if each in drawn)
    assert {drawn[each] for each in ("purple", "block", "lift") if each in drawn} == {-1}


def test_sentences_name_the_colour_that_is_meant() -> None:
    random = np.random.default_rng(0)
    for index in range(600):
        goal = GOALS[index % 12]
        assert goal.colour in command(random, goal, "plain", "test")
        assert any(
            name in command(random, goal, "synonym", "test")
            for name in ["", *names(goal.colour, "test", "synonym")]
        )


def test_shares_add_up_and_every_kind_is_said() -> None:
    assert sum(KINDS.values()) == pytest.approx(1)
    assert sum(IMPOSSIBLE.values()) == pytest.approx(1)
    random = np.random.default_rng(0)
    for split in ("train", "test"):
        for kind in (*IMPOSSIBLE, "never"):
            assert len({impossible(random, kind, split) for _ in range(50)}) > 5
        for kind in KINDS:
            for sentence in (command(random, GOALS[i % 12], kind, split) for i in range(50)):
                assert "{" not in sentence


def test_goals_that_are_left_out_are_not_even_forbidden():
    random = np.random.default_rng(0)

    def blue(goals):
        return sum("blue" in impossible(random, "forbidden", "train", goals).split() for _ in range(400))

    assert blue([goal for goal in GOALS if goal.colour != "blue"]) == 0
    assert blue(GOALS) > 40
