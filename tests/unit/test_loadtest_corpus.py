"""What is sent: decodable pictures, no two alike, in forms that the server's own parser reads."""

import io
from email.parser import BytesParser

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


def test_form_is_multipart() -> None:
    body = corpus.form({"image.front": b"\xff\xd8\r\n--"}, {"command": "push the réd block"})

    parsed = BytesParser().parsebytes(f"Content-Type: {corpus.FORM}\r\n\r\n".encode() + body)

    parts = parsed.get_payload()
    assert [part.get_param("name", header="Content-Disposition") for part in parts] == [
        "image.front",
        "command",
    ]
    assert parts[0].get_payload(decode=True) == b"\xff\xd8\r\n--"
    assert parts[1].get_payload(decode=True).decode() == "push the réd block"
