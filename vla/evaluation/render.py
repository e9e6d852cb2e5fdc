"""Episodes as pictures: an animation of a few robots side by side, and a contact sheet."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeAlias

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from vla.evaluation.conditions import Trial
from vla.evaluation.episodes import Episode, Setup, run_episode
from vla.tabletop.simulator import CONTROL_HZ, EPISODE_STEPS, Tabletop
from vla_client import Policy

# Edge of a picture, margin, and the heights of the lines above and below a picture [pixels].
PICTURE = 240
MARGIN = 10
HEAD = 40
FOOT = 24
COLUMNS = 6
# How long the animation rests on its last picture [ms].
REST_MS = 2000

PAPER = (250, 250, 248)
INK = (28, 30, 34)
_FAINT = (120, 124, 132)
GOOD = (22, 128, 60)
BAD = (190, 40, 40)
_PANEL = PICTURE + MARGIN

# At the last moment the outcome, and whether it is good.
End: TypeAlias = tuple[str, bool] | None
# A picture, 240 x 240 RGB, and what is written below it on the left and on the right.
Panel: TypeAlias = tuple[Image.Image, str, End]


@dataclass(frozen=True, eq=False)
class Recording:
    """One episode with its pictures: after the reset and after every step."""

    episode: Episode
    frames: tuple[Image.Image, ...]
    # Whether the policy was to hold, and did not.
    acted_on: bool = False


def record(env: Tabletop, policy: Policy, trial: Trial, setup: Setup) -> Recording:
    """Run one trial and keep a picture, 240 x 240 RGB, of every control step."""
    frames: list[Image.Image] = []
    # Drawn at twice the size and averaged: the edges are smooth.
    episode = run_episode(
        env, policy, trial, setup, lambda: frames.append(Image.fromarray(env.render(2 * PICTURE)).reduce(2))
    )
    return Recording(episode, tuple(frames))


def animate(recordings: Sequence[Recording], path: Path) -> None:
    """Write the episodes side by side as a GIF at the control rate; one that is over rests on its end."""
    length = max(len(recording.frames) for recording in recordings)
    sheets = [_moment(recordings, step) for step in range(length)]
    # One palette for all frames, taken from the first and the last: colours do not flicker.
    sample = Image.fromarray(np.concatenate([np.asarray(sheets[0]), np.asarray(sheets[-1])]))
    palette = sample.quantize(256, Image.Quantize.MEDIANCUT)
    images = [sheet.quantize(palette=palette, dither=Image.Dither.NONE) for sheet in sheets]
    step_ms = round(1000 / CONTROL_HZ)
    durations = [step_ms] * (length - 1) + [REST_MS]
    images[0].save(path, save_all=True, append_images=images[1:], duration=durations, loop=0, optimize=False)


class Strip(NamedTuple):
    """A row of a contact sheet: a command and six moments."""

    command: str
    panels: Sequence[Panel]


def contact_sheet(recordings: Sequence[Recording], path: Path) -> None:
    """Write a PNG: an episode a row, six moments from its first to its last picture."""
    strips = []
    for recording in recordings:
        frames, panels = recording.frames, list[Panel]()
        for moment in spread(len(frames)):
            panels.append((frames[moment], f"step {moment}", _end(recording, moment)))
        strips.append(Strip(recording.episode.trial.command, panels))
    write_sheet(strips, path)


def spread(count: int) -> list[int]:
    """Return the indices of six moments, from the first of `count` to the last."""
    return [int(moment) for moment in np.linspace(0, count - 1, COLUMNS).round()]


def write_sheet(strips: Sequence[Strip], path: Path) -> None:
    """Write the strips below each other as a PNG."""
    row = HEAD + PICTURE + FOOT
    sheet = Image.new("RGB", (COLUMNS * _PANEL + MARGIN, len(strips) * row + MARGIN), PAPER)
    draw = ImageDraw.Draw(sheet)
    for index, strip in enumerate(strips):
        top = MARGIN + index * row
        draw.text((MARGIN, top + 4), f"“{strip.command}”", INK, font(20))
        for column, (picture, text, end) in enumerate(strip.panels):
            left = MARGIN + column * _PANEL
            sheet.paste(picture, (left, top + HEAD - 6))
            _write(draw, text, end, left, top + HEAD + PICTURE - 4)
    sheet.save(path, optimize=True)


def _moment(recordings: Sequence[Recording], step: int) -> Image.Image:
    """Draw all episodes at one step, side by side, the command above each."""
    sheet = Image.new("RGB", (len(recordings) * _PANEL + MARGIN, HEAD + PICTURE + FOOT + MARGIN), PAPER)
    draw = ImageDraw.Draw(sheet)
    for index, recording in enumerate(recordings):
        left, moment = MARGIN + index * _PANEL, min(step, len(recording.frames) - 1)
        draw.multiline_text(
            (left, HEAD - 3),
            _wrapped(f"“{recording.episode.trial.command}”"),
            INK,
            font(14),
            anchor="ld",
            spacing=2,
        )
        sheet.paste(recording.frames[moment], (left, HEAD))
        _caption(draw, recording, moment, left, HEAD + PICTURE + 3)
    return sheet


def _caption(draw: ImageDraw.ImageDraw, recording: Recording, moment: int, left: int, top: int) -> None:
    """Write the step on the left and, once the episode is over, its outcome on the right."""
    _write(draw, f"step {moment}", _end(recording, moment), left, top)


def _write(draw: ImageDraw.ImageDraw, text: str, end: End, left: int, top: int) -> None:
    draw.text((left, top), text, _FAINT, font(14))
    if end is not None:
        draw.text((left + PICTURE, top), end[0], GOOD if end[1] else BAD, font(14), anchor="ra")


def _end(recording: Recording, moment: int) -> End:
    episode = recording.episode
    if moment < len(recording.frames) - 1:
        return None
    if recording.acted_on:
        return "was to be held", False
    if episode.success:
        return f"{episode.trial.goal.task}: success", True
    if episode.error is not None:
        return f"refused: {episode.error}", False
    if episode.outcome is not None:
        return f"{episode.trial.goal.task}: wrong block, {episode.outcome}", False
    return f"not within {EPISODE_STEPS} steps", False


def _wrapped(text: str) -> str:
    """Break a command into lines of a panel's width."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if font(14).getlength(longer) <= PICTURE:
            lines[-1] = longer
        else:
            lines.append(word)
    return "\n".join(lines)


def font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Return the sheets' font in this size [pixels]."""
    return ImageFont.load_default(size)
