"""What reads a stranger's bytes in this process, and what must be true of it for any bytes at all."""

import base64
import io
import json
import time
import zipfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
from PIL import Image

from archive.errors import ArchiveError
from archive.read import read_policy
from fuzz import corpus
from fuzz.mutation import mutated_picture
from fuzz.rows import changed_row
from fuzz.target import Target
from server.gate import form
from server.gate.batch import alone
from server.gate.head import Chunks, Head, read_head
from server.gate.refusal import Refusal
from server.gate.routes import LARGEST_BODY, check, is_model, model_of, prediction
from vla_runtime import wire
from vla_runtime.errors import RequestError, SpecError
from vla_runtime.images import Limits, open_image
from vla_runtime.observation import Row
from vla_runtime.policy import Policy
from vla_runtime.preprocessing import cost_ms, picture
from vla_runtime.spec import Camera, PolicySpec

CAMERAS = (
    Camera(name="a", width=32, height=32),
    Camera(name="b", width=32, height=20, resize="pad", interpolation="lanczos"),
    Camera(name="c", width=20, height=32, resize="stretch", interpolation="nearest"),
    Camera(name="d", width=40, height=30, resize="none", values="zero_to_one"),
    Camera(name="e", width=224, height=224, interpolation="bilinear"),
)
LIMITS = Limits()
# Rows of more bytes are not read a second time.
LARGE = 65_536


def load(folder: Path) -> dict[str, Target]:
    """Return every target around the policy of an unpacked archive, by name.

    Raises:
        SpecError: it can't be loaded.
    """
    return _Readers(folder).targets()


class _Readers:
    """What is tried, around one policy."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._policy = Policy.load(folder, replay=False)
        row = self._policy.example_row(folder)
        image = row["image.front"] if "image.front" in row else row["image"]
        seen = Image.open(io.BytesIO(image if isinstance(image, bytes) else b""))
        rest = {name: value for name, value in row.items() if not name.startswith("image")}
        spec = self._policy.spec
        previous = [0.0] * spec.action.width
        more: dict[str, object] = {"seed": 7, "deadline_ms": 5000.0, "previous": previous}
        if spec.max_delay:
            more |= {"previous": [previous] * spec.action.horizon, "delay": spec.max_delay}
        self._seeds = corpus.Corpus(rest, more, corpus.pictures(seen))

    def targets(self) -> dict[str, Target]:
        seeds = self._seeds
        commands = tuple(
            text.encode() for text in ("lift the red block", "ünïcödé ｆｕｌｌ 😀", "a" * 512, "1 2, 3!?")
        )
        policy = (self._folder / "policy.json").read_bytes()
        former = json.dumps({**json.loads(policy), "format_version": 1}).encode()
        found = (
            Target("pictures", seeds.pictures, corpus.PICTURE_WORDS, self._picture, mutated_picture),
            Target("json", seeds.json, corpus.JSON_WORDS, lambda data: self._body(data, wire.JSON)),
            Target("msgpack", seeds.msgpack, corpus.PACK_WORDS, lambda data: self._body(data, wire.MSGPACK)),
            Target("rows", seeds.msgpack, (), self._anyhow, changed_row),
            Target("http", seeds.requests, corpus.HTTP_WORDS, self._http),
            Target(
                "commands",
                commands,
                (b"\xed\xa0\x80", b"\0", "\u200b\u202e".encode(), b"{command}"),
                self._command,
            ),
            Target("spec", (policy, former), corpus.JSON_WORDS, self._spec),
        )
        return {target.name: target for target in found}

    def _picture(self, data: bytes) -> str:
        camera = CAMERAS[len(data) % len(CAMERAS)]
        limits = replace(LIMITS, allow_damaged=len(data) % 2 == 0)
        try:
            image = open_image(data, "image", limits)
            if cost_ms(image, camera) > limits.max_decode_ms:
                return "too dear"
            pixels = picture(image, camera, "image")
        except RequestError as error:
            return _refused(error)
        assert (pixels.dtype, pixels.shape) == (np.uint8, (3, camera.height, camera.width))
        return "decoded"

    def _body(self, data: bytes, media_type: str) -> str:
        row = wire.read({"body": data}, media_type)
        return _refused(row) if isinstance(row, RequestError) else self._row(row)

    def _anyhow(self, data: bytes) -> str:
        """The same row in MessagePack, and in JSON where that can write it."""
        said = self._body(data, wire.MSGPACK)
        if len(data) > LARGE:
            return said
        try:
            text = json.dumps(msgspec.msgpack.decode(data), default=_base64, ensure_ascii=False)
        except (TypeError, ValueError):
            return said
        self._body(text.encode("utf-8", "surrogatepass"), wire.JSON)
        return said

    def _row(self, row: Row) -> str:
        try:
            inputs = self._policy.prepare(row, time.time())
        except RequestError as error:
            return _refused(error)
        assert all(np.isfinite(tensor).all() for tensor in inputs.tensors.values())
        assert np.isfinite(inputs.state).all()
        return "prepared"

    def _command(self, data: bytes) -> str:
        raw = {"shape": [2, 2, 3], "dtype": "uint8", "data": bytes(12)}
        text = data.decode("utf-8", "surrogatepass") if len(data) % 2 and _decodes(data) else data
        return self._row({**self._seeds.row, "image": raw, "command": text})

    def _spec(self, data: bytes) -> str:
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("policy.json", data)
        changed = self._folder / "changed"
        changed.mkdir(exist_ok=True)
        (changed / "policy.json").write_bytes(data)
        (changed / "vla.mar").write_bytes(file.getvalue())
        for read in (lambda: PolicySpec.load(changed), lambda: read_policy(changed / "vla.mar")):
            try:
                read()
            except (SpecError, ArchiveError) as error:
                return type(error).__name__
        return "read"

    def _http(self, data: bytes) -> str:
        """What the gate makes of a connection's first request, and a worker of that."""
        end = data.find(b"\r\n\r\n")
        if end < 0:
            return "no head"
        try:
            head = read_head(data[:end])
            if not is_model(head.path):
                return "no model"
            check(head)
            body = _whole(head, data[end + 4 :])
            if body is None:
                return "incomplete"
            asked = prediction(head, body, time.time(), {"vla"})
        except Refusal as refusal:
            json.loads(refusal.answer("x").body)
            return refusal.code
        return self._forwarded(head, body, alone(asked))

    def _forwarded(self, head: Head, body: bytes, request: bytes) -> str:
        """A request that is handed on is exactly one, and says what its client said."""
        first, _, rest = request.partition(b"\r\n\r\n")
        again = read_head(first)
        assert (again.method, again.path, again.length) == ("POST", head.path, len(rest))
        content_type = again.headers.get("content-type", "")
        if model_of(head.path) != "vla":
            return "another model"
        row = wire.read({"body": rest}, content_type)
        kind, parameters = form.media_type(head.headers.get("content-type", ""))
        if kind == form.MULTIPART:
            assert row == form.fields(body, parameters["boundary"])
        return _refused(row) if isinstance(row, RequestError) else self._row(row)


def _whole(head: Head, data: bytes) -> bytes | None:
    """Return the body, the same however its pieces arrive; None for one that is incomplete."""
    if head.length is not None:
        return data[: head.length] if len(data) >= head.length else None
    whole = _unchunked(data, len(data) or 1)
    if len(data) < 20_000:
        assert _unchunked(data, 7) == whole
    if isinstance(whole, Refusal):
        raise whole
    return whole


class _Broken(Refusal):
    """A refusal that is equal to another one with the same words."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Refusal) and (self.status, self.message) == (other.status, other.message)

    __hash__ = Refusal.__hash__


def _unchunked(data: bytes, size: int) -> bytes | _Broken | None:
    chunks, waiting = Chunks(), bytearray()
    try:
        for at in range(0, len(data), size):
            waiting += data[at : at + size]
            if chunks.feed(waiting, LARGEST_BODY):
                return bytes(chunks.body)
    except Refusal as refusal:
        return _Broken(refusal.status, refusal.code, refusal.message)
    return None


def _refused(error: RequestError) -> str:
    """A refusal is the client's, and can be written in both forms."""
    assert 400 <= error.status < 500, error
    body: Mapping[str, object] = error.body()
    for accept in (wire.JSON, wire.MSGPACK):
        text, kind = wire.serialise(body, accept)
        assert (json.loads(text) if kind == wire.JSON else msgspec.msgpack.decode(text)) == body
    return error.code


def _base64(value: object) -> str:
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    raise TypeError(type(value))


def _decodes(data: bytes) -> bool:
    try:
        data.decode("utf-8", "surrogatepass")
    except UnicodeDecodeError:
        return False
    return True
