"""Labels that the simulator knows and no robot records: which block is meant, and where the camera sees it.

The boxes follow from the scene's description alone; nothing is rendered for them.
"""

from functools import cache
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray

from vla.tabletop.commands import COLOURS, GOALS
from vla.tabletop.looks import PLAIN, Look, turned

SCENE = Path(__file__).with_name("tabletop.xml")


# The block that each goal means: int64 [G], index into `COLOURS`.
TARGETS = np.array([COLOURS.index(goal.colour) for goal in GOALS])


class Camera(NamedTuple):
    """A pinhole camera over square pictures."""

    position: NDArray[np.float64]  # float64 [3], table frame [m]
    axes: NDArray[np.float64]  # float64 [3, 3], rows: right, up and backwards, in the table frame
    # Half the picture's edge at a distance of 1.
    half_edge: float
    # Half the edge of a block [m].
    block_half: float


def boxes(blocks: NDArray[np.floating], look: Look = PLAIN) -> NDArray[np.float32]:
    """Return the smallest boxes around upright blocks, hidden ones too.

    Args:
        blocks: float [..., 3], the blocks' centres in the table frame [m], in front of the camera
        look: where the camera is moved and turned to

    Returns:
        float32 [..., 4], left, top, right and bottom as shares of the picture's edge, in [0, 1]
    """
    signs = np.stack(np.meshgrid(*[(-1, 1)] * 3), axis=-1).reshape(8, 3)
    corners = np.asarray(blocks, np.float64)[..., None, :] + signs * _front().block_half  # [..., 8, 3]
    pictured = points(corners, look)
    edges = np.concatenate([pictured.min(-2), pictured.max(-2)], axis=-1)
    return edges.clip(0, 1)


def points(places: NDArray[np.floating], look: Look = PLAIN) -> NDArray[np.float32]:
    """Return where the picture shows places, hidden ones too.

    Args:
        places: float [..., 3], in the table frame [m], in front of the camera
        look: where the camera is moved and turned to

    Returns:
        float32 [..., 2], x to the right and y down as shares of the picture's edge, outside [0, 1] where they
        are not in the picture
    """
    camera = _camera(look)
    right, up, back = np.moveaxis((np.asarray(places) - camera.position) @ camera.axes.T, -1, 0)
    scale = 0.5 / (-back * camera.half_edge)
    return np.stack([0.5 + right * scale, 0.5 - up * scale], axis=-1).astype(np.float32)


def _camera(look: Look) -> Camera:
    front = _front()
    return front._replace(
        position=front.position + look.shift,
        axes=turned(front.axes, look.turn),
        half_edge=front.half_edge * look.zoom,
    )


@cache
def _front() -> Camera:
    """Read the scene's camera; its second axis is made perpendicular to its first, as MuJoCo does it."""
    scene = ElementTree.parse(SCENE).getroot()
    camera, block = scene.find(".//camera[@name='front']"), scene.find(".//default[@class='block']/geom")
    if camera is None or block is None:
        raise ValueError(f"{SCENE.name} has no camera 'front' or no class 'block'")
    x, y = np.array(camera.attrib["xyaxes"].split(), np.float64).reshape(2, 3)
    x /= np.linalg.norm(x)
    y -= x * (x @ y)
    y /= np.linalg.norm(y)
    return Camera(
        position=np.array(camera.attrib["pos"].split(), np.float64),
        axes=np.stack([x, y, np.cross(x, y)]),
        half_edge=float(np.tan(np.radians(float(camera.attrib["fovy"])) / 2)),
        block_half=float(block.attrib["size"].split()[0]),
    )
