"""The attention as a picture: what is seen, warm where the command looks."""

import io

import numpy as np
import pytest
from PIL import Image

from vla_runtime.explanation import EDGE, LINE, Box, box_of, overlay


def drawn(pictures: list[np.ndarray], attention: np.ndarray) -> np.ndarray:
    image = Image.open(io.BytesIO(overlay(pictures, attention.astype(np.float32))))
    assert image.format == "PNG"
    return np.asarray(image)


def test_cameras_stand_side_by_side() -> None:
    pictures = [np.full((3, 8, 12), value, np.uint8) for value in (10, 200)]

    image = drawn(pictures, np.zeros((2, 3, 3)))

    assert image.shape == (EDGE, 2 * EDGE, 3)
    assert (image[:, :EDGE] == 10).all()
    assert (image[:, EDGE:] == 200).all()


@pytest.mark.parametrize("strength", [1.0, 5.0, 1e-6])
def test_where_the_command_looks_most_it_is_seven_tenths_warm(strength: float) -> None:
    """[255, 64, 0] over [100, 100, 255]; half as much where the attention is half of the largest."""
    picture = np.array([100, 100, 255], np.uint8)[:, None, None].repeat(4, 1).repeat(4, 2)
    heat = strength * np.array([[[1.0, 0.5, 0.0]]]).repeat(3, 1)

    image = drawn([picture], heat)

    assert image[200, 0].tolist() == [208, 75, 76]
    assert image[200, EDGE // 2].tolist() == pytest.approx([154, 87, 166], abs=1)
    assert image[200, -1].tolist() == [100, 100, 255]


def test_without_attention_the_pictures_are_as_they_are() -> None:
    image = np.asarray(Image.open(io.BytesIO(overlay([np.full((3, 4, 4), 7, np.uint8)], None))))
    assert (image == 7).all()


def test_the_box_is_framed_in_its_cameras_picture() -> None:
    grey = [np.full((3, 4, 4), 100, np.uint8)] * 2
    box = box_of({"box": [0.25, 0.5, 2.0, 0.75], "box_camera": 1.0})
    assert box == Box(1, 0.25, 0.5, 2.0, 0.75)
    image = np.asarray(Image.open(io.BytesIO(overlay(grey, None, box))))

    green = (image == [0, 255, 0]).all(-1)
    assert not green[:, :EDGE].any()
    rows, columns = np.nonzero(green)
    assert (rows.min(), rows.max()) == (EDGE // 2, 3 * EDGE // 4)
    assert (columns.min(), columns.max()) == (EDGE + EDGE // 4, 2 * EDGE - 1)
    assert not green[rows.min() + 2 : rows.max() - 1, EDGE + EDGE // 4 + 2 : 2 * EDGE - 2].any()


@pytest.mark.parametrize("box", [Box(2, 0, 0, 1, 1), Box(-1, 0, 0, 1, 1), Box(0, 0.7, 0, 0.2, 1)])
def test_a_box_that_is_none_is_not_framed(box: Box) -> None:
    assert np.asarray(Image.open(io.BytesIO(overlay([np.zeros((3, 4, 4), np.uint8)], None, box)))).max() == 0


@pytest.mark.parametrize("extras", [{}, {"box": "left"}, {"box": [0.1, 0.2, 0.3]}])
def test_no_box(extras: dict[str, object]) -> None:
    assert box_of(extras) is None


def test_what_is_said_stands_below() -> None:
    image = np.asarray(
        Image.open(io.BytesIO(overlay([np.zeros((3, 4, 4), np.uint8)], None, None, "lifts " * 20)))
    )

    assert image.shape == (EDGE + 3 * LINE + LINE // 2, EDGE, 3)
    below = image[EDGE:]
    assert below.max() == 255
    assert all((below[LINE * line + 3 : LINE * (line + 1)] == 0).any() for line in range(3))


def test_pictures_keep_their_orientation_and_colours() -> None:
    picture = np.zeros((3, 2, 2), np.uint8)
    picture[:, 0, 0], picture[:, 0, 1] = [255, 0, 0], [0, 255, 0]

    image = drawn([picture], np.zeros((1, 2, 2)))

    assert [image[0, 0].tolist(), image[0, -1].tolist()] == [[255, 0, 0], [0, 255, 0]]
    assert image[-1].max() == 0


def test_a_trace_of_attention_is_not_drawn_as_the_whole() -> None:
    """A tenth of what counts at least, 1e-12, is 25 of 255, of which seven tenths are drawn."""
    image = drawn([np.full((3, 4, 4), 9, np.uint8)], np.full((1, 2, 2), 1e-13))

    assert image[0, 0].tolist() == [26, 13, 8]
