"""The pictures that are sent: decodable, of their size, no two alike."""

import io

import numpy as np
from PIL import Image

from loadtest import corpus


def pixels(jpeg: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(jpeg)))


def test_half_of_the_sources_are_simulator_frames_and_half_photographs() -> None:
    sizes = [picture.size for picture in corpus.sources()]

    assert len(sizes) == 48
    assert set(sizes[::2]) == {(320, 320)}
    assert (320, 320) not in sizes[1::2]
    assert len(corpus.commands()) == 24


def test_pictures_differ_and_have_the_sizes_asked_for() -> None:
    made = corpus.pictures(60, ((96, 96), (320, 240)), seed=1)

    assert {pixels(jpeg).shape for jpeg in made[::2]} == {(96, 96, 3)}
    assert {pixels(jpeg).shape for jpeg in made[1::2]} == {(240, 320, 3)}
    assert len({pixels(jpeg).tobytes() for jpeg in made}) == 60
    assert made == corpus.pictures(60, ((96, 96), (320, 240)), seed=1)
    assert made[0] != corpus.pictures(1, ((96, 96),), seed=2)[0]


def test_number_changes_bytes_and_no_pixel() -> None:
    (jpeg,) = corpus.pictures(1, ((96, 96),), seed=1)

    first, second = corpus.numbered(jpeg, 1), corpus.numbered(jpeg, 2)

    assert len({jpeg, first, second}) == 3
    assert (pixels(first) == pixels(jpeg)).all()
    assert (pixels(second) == pixels(jpeg)).all()


def test_files_have_about_the_size_asked_for() -> None:
    files = corpus.pictures(24, ((640, 480),), seed=0, kilobytes=30)

    assert 24_000 < np.mean([len(file) for file in files]) < 36_000
    assert len(set(files)) == 24
