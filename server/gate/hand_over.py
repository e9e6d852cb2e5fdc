"""How a batch reaches a worker: a large one by a file in shared memory, whose name alone passes TorchServe.

TorchServe's front end copies a body several times, which costs 15 us a kB; a file is written and read once.
"""

import contextlib
import itertools
import os
from collections.abc import Callable
from pathlib import Path

from server.gate.batch import MEDIA_TYPE, posted
from server.gate.refusal import Answer
from server.gate.torchserve import Upstream

Done = Callable[[Answer | None], None]

# What a worker's handler reads as the name of a file that holds a batch.
BY_NAME = "application/vnd.vla-serve.batch-file"
# A smaller batch costs as little in one piece [bytes].
SMALLEST = 16_384
NAMES = itertools.count(1)


class HandOver:
    """Hands one model's batches to its workers."""

    def __init__(self, upstream: Upstream, folder: Path | None) -> None:
        self._upstream = upstream
        # None: everything goes through TorchServe.
        self._folder = folder

    def ask(self, path: str, batch: bytes, done: Done) -> None:
        """Send a batch; `done` gets the answer, or None when there is none."""
        file = self._written(batch)
        if file is None:
            self._upstream.ask(posted(path, MEDIA_TYPE, batch), done)
            return

        def finish(answer: Answer | None) -> None:
            file.unlink(missing_ok=True)
            if answer is not None and answer.status == 415 and answer.kind != MEDIA_TYPE.encode():
                # The worker is of an archive from before there were such files.
                self._folder = None
                self._upstream.ask(posted(path, MEDIA_TYPE, batch), done)
            else:
                done(answer)

        self._upstream.ask(posted(path, BY_NAME, file.name.encode()), finish)

    def _written(self, batch: bytes) -> Path | None:
        """Return the batch's file; None: it is small, or there is no room."""
        if self._folder is None or len(batch) < SMALLEST:
            return None
        file = self._folder / str(next(NAMES))
        try:
            descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except OSError:
            return None
        with os.fdopen(descriptor, "wb", buffering=0) as opened, contextlib.suppress(OSError):
            if opened.write(batch) == len(batch):
                return file
        file.unlink(missing_ok=True)
        return None
