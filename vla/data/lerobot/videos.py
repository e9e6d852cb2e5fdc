"""Frames out of videos, by PyAV."""

# PyAV's type information is incomplete.
# pyright: reportMissingImports=false, reportAttributeAccessIssue=false

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vla.data.episodes import DataError


def read(path: Path, times: NDArray[np.float64], fps: float) -> Sequence[Image.Image]:
    """Read the frames that are shown at times, float64 [n] and rising [s].

    Raises:
        DataError: PyAV is not installed, the file is missing or unreadable, or a time has no frame.
    """
    try:
        import av  # noqa: PLC0415 - the one part that needs it
    except ImportError:
        raise DataError(f"{path}: reading videos needs PyAV: pip install -e '.[data]'") from None
    found: list[Image.Image] = []
    try:
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            if stream.time_base is not None:
                container.seek(int(times[0] / stream.time_base), stream=stream, backward=True)
            for frame in container.decode(stream):
                if len(found) == len(times):
                    break
                # The frame that is nearest: half a frame's time to either side.
                if frame.time is not None and frame.time > times[len(found)] - 0.5 / fps:
                    if frame.time > times[len(found)] + 0.5 / fps:
                        break
                    found.append(frame.to_image())
    except (av.error.FFmpegError, OSError, IndexError) as error:
        raise DataError(f"{path}: the video can't be read: {error}") from error
    if len(found) != len(times):
        raise DataError(f"{path}: no frame at {times[len(found)]:.3f} s, {len(found)} of {len(times)} found")
    return found
