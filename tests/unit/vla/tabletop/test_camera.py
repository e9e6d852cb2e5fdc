"""The labels of where blocks are in the picture agree with what the renderer draws there."""

import numpy as np
import pytest

from vla.tabletop.commands import COLOURS
from vla.tabletop.labels import boxes
from vla.tabletop.simulator import Tabletop

SIZE = 192


@pytest.mark.parametrize("seed", [0, 1])
def test_boxes_hold_the_blocks_that_are_drawn(seed):
    env = Tabletop()
    env.reset(seed)
    picture = env.render(SIZE).astype(int)
    found = boxes(env.blocks())
    env.close()
    red, green, blue = np.moveaxis(picture, -1, 0)
    drawn = {
        "red": (red > 2 * green) & (red > 2 * blue),
        "green": (green > 2 * red) & (green > 2 * blue),
        "blue": (blue > 2 * red) & (blue > 2 * green),
        "yellow": (red > 2 * blue) & (green > 2 * blue),
    }
    for colour, box in zip(COLOURS, found, strict=True):
        rows, columns = np.nonzero(drawn[colour])
        assert len(rows) > 100
        edges = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]) / SIZE
        np.testing.assert_allclose(edges, box, atol=2.5 / SIZE)


def test_boxes_stay_in_the_picture():
    found = boxes(np.array([[[0.0, 5.0, 0.0], [0.0, 0.0, 0.02]]]))
    assert found.shape == (1, 2, 4)
    assert found.dtype == np.float32
    assert 0 <= found.min() <= found.max() <= 1
