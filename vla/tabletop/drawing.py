"""How the simulator draws: what a look changes of a compiled scene, and the renderers."""

# mujoco ships no type information for its compiled names.
# pyright: reportAttributeAccessIssue=false

import atexit
import weakref
from collections.abc import Iterable

import mujoco
import numpy as np

from vla.tabletop.commands import COLOURS
from vla.tabletop.looks import DISTRACTORS, Look, turned

# Every renderer in use.
_OPEN: weakref.WeakSet[mujoco.Renderer] = weakref.WeakSet()


def apply(model: mujoco.MjModel, plain: mujoco.MjModel, look: Look, camera: str) -> None:
    """Give a model the look of the plain one with these changes; nothing that physics reads is touched."""
    gain = look.light * np.array(look.tint)
    for part in ("ambient", "diffuse"):
        getattr(model.vis.headlight, part)[:] = gain * getattr(plain.vis.headlight, part)
    model.light_diffuse[:] = gain * plain.light_diffuse
    direction = plain.light_dir[0] + (*look.lamp, 0.0)
    model.light_dir[0] = direction / np.linalg.norm(direction)
    index = model.camera(camera).id
    model.cam_pos[index] = plain.cam_pos[index] + look.shift
    axes = np.empty(9)
    mujoco.mju_quat2Mat(axes, plain.cam_quat[index])
    mujoco.mju_mat2Quat(model.cam_quat[index], turned(axes.reshape(3, 3).T, look.turn).T.flatten())
    model.cam_fovy[index] = 2 * np.degrees(
        np.arctan(look.zoom * np.tan(np.radians(plain.cam_fovy[index]) / 2))
    )
    model.mat_rgba[:] = plain.mat_rgba
    for name, colour in zip(("wood", "mat", "edge"), look.table or (), strict=False):
        model.mat_rgba[model.material(name).id, :3] = colour
    for name, colour in zip(COLOURS, look.blocks or (), strict=False):
        model.mat_rgba[model.material(name).id, :3] = colour
    for index in range(DISTRACTORS):
        geom = model.geom(f"distractor{index}").id
        shown = index < len(look.distractors)
        model.geom_rgba[geom] = (*look.distractors[index].colour, 1.0) if shown else (0.0, 0.0, 0.0, 0.0)
        if shown:
            thing = look.distractors[index]
            model.geom_size[geom] = thing.size
            model.geom_pos[geom] = (thing.x, thing.y, thing.size)


def renderer(model: mujoco.MjModel, size: int) -> mujoco.Renderer:
    """Make a renderer without shadows and reflections, which would cost most of the time."""
    made = mujoco.Renderer(model, size, size)
    for flag in (mujoco.mjtRndFlag.mjRND_SHADOW, mujoco.mjtRndFlag.mjRND_REFLECTION):
        made.scene.flags[flag] = 0
    # Contexts must go before mujoco ends the display at exit: hooks run last in, first out.
    if not _OPEN:
        atexit.register(close, _OPEN)
    _OPEN.add(made)
    return made


def close(renderers: Iterable[mujoco.Renderer]) -> None:
    """Free their contexts."""
    for each in renderers:
        each.close()
