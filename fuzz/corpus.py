"""Valid inputs that mutations begin with, and the words of their formats."""

import base64
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass

import msgspec
from PIL import Image

MARKERS = tuple(
    bytes([0xFF, code]) for code in (0xC0, 0xC2, 0xC4, 0xCC, 0xD0, 0xD8, 0xD9, 0xDA, 0xDB, 0xDD, 0xE1, 0xFE)
)
CHUNKS = (
    b"IHDR",
    b"IDAT",
    b"IEND",
    b"PLTE",
    b"tRNS",
    b"iCCP",
    b"zTXt",
    b"eXIf",
    b"acTL",
    b"fcTL",
    b"fdAT",
    b"gAMA",
)
RIFF = (b"RIFF", b"WEBP", b"VP8 ", b"VP8L", b"VP8X", b"ANIM", b"ANMF", b"ALPH", b"EXIF", b"ICCP")
PICTURE_WORDS = (*MARKERS, *CHUNKS, *RIFF, b"Exif\0\0", b"MM\0*", b"II*\0", b"MPF\0")
JSON_WORDS = tuple(
    word.encode()
    for word in (
        '"state"', '"image"', '"command"', '"previous"', '"delay"', '"seed"', '"deadline_ms"',
        '"image.front"', '"shape"',
        "null", "true", "NaN", "-Infinity", "1e400", "-0", "1" * 400, "[", "[[", "]", "{", "}", ",", ":", '"',
        '"\\ud800"', '"\\u0000"', "\ufeff", "9223372036854775808", '{"":0}',
    )
)  # fmt: skip
PACK_WORDS = (
    b"\xc0", b"\xc1", b"\xc2", b"\xc4\xff", b"\xc6\xff\xff\xff\xff", b"\xca\x7f\xc0\0\0",
    b"\xcb\x7f\xf0" + bytes(6),
    b"\xd9\xff", b"\xdc\xff\xff", b"\xdd\xff\xff\xff\xff", b"\xde\xff\xff",
    b"\xdf\xff\xff\xff\xff", b"\x80", b"\x90",
    b"\xd6\xff\0\0\0\0", b"\xc7\x0c\xff", b"\xa5state", b"\xa5image", b"\xa4seed", b"\xabdeadline_ms",
)  # fmt: skip
HTTP_WORDS = (
    b"\r\n", b"\r\n\r\n", b"\n", b"\r", b"\0", b" ", b"\t", b":", b";", b'"', b"\\", b"--b", b"--b--", b"=",
    b"Transfer-Encoding: chunked\r\n", b"Content-Length: 5\r\n", b"Content-Length: 0\r\n",
    b"Expect: 100-continue\r\n",
    b"Connection: close\r\n", b"Host: y\r\n", b"X-Request-Id: \xff\r\n", b"Accept: application/msgpack\r\n",
    b"HTTP/1.0", b"HTTP/2.0", b"GET ", b"/explanations/", b"/1.0", b"%2e%2e/", b"boundary=", b"charset=x",
    b"Content-Disposition: form-data; name=", b'filename="x"', b"0\r\n\r\n", b"ffffffff\r\n",
    b"-1", b"5;x=y\r\n",
)  # fmt: skip


@dataclass(frozen=True)
class Corpus:
    """What a policy answers: its archived example as a row, and in every kind of body."""

    # Without a picture.
    row: Mapping[str, object]
    # Optional fields.
    more: Mapping[str, object]
    pictures: tuple[bytes, ...]

    @property
    def rows(self) -> tuple[Mapping[str, object], ...]:
        """The example with every kind of picture, raw pixels among them, and with every optional field."""
        raw = {"shape": [2, 3, 3], "dtype": "uint8", "data": bytes(18)}
        pictures = (*sorted(self.pictures, key=len)[:12], raw)
        return tuple(
            {**self.row, "image": picture} | (dict(self.more) if i % 2 else {})
            for i, picture in enumerate(pictures)
        )

    @property
    def json(self) -> tuple[bytes, ...]:
        """Bodies in JSON."""
        texts = [{name: _text(value) for name, value in row.items()} for row in self.rows]
        return tuple(json.dumps(text).encode() for text in texts)

    @property
    def msgpack(self) -> tuple[bytes, ...]:
        """Bodies in MessagePack."""
        return tuple(msgspec.msgpack.encode(row) for row in self.rows)

    @property
    def forms(self) -> tuple[bytes, ...]:
        """Bodies of forms, whose boundary is `b`."""
        rows = [row for row in self.rows if isinstance(row["image"], bytes)]
        return tuple(b"".join([*(_part(*field) for field in row.items()), b"--b--\r\n"]) for row in rows)

    @property
    def requests(self) -> tuple[bytes, ...]:
        """Whole requests, of every kind and framing."""
        kinds = {
            b"application/json": self.json,
            b"application/msgpack": self.msgpack,
            b"multipart/form-data; boundary=b": self.forms,
        }
        pairs = [(kind, body) for kind, bodies in kinds.items() for body in bodies[:4]]
        whole = [_request(kind, b"Content-Length: %d" % len(body), body) for kind, body in pairs]
        return (
            *whole,
            *(_request(kind, b"Transfer-Encoding: chunked", _chunked(body)) for kind, body in pairs),
        )


def pictures(seed: Image.Image) -> tuple[bytes, ...]:
    """Return a picture in every format that is taken, with what cameras and editors add to it."""
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "camera"
    small = seed.convert("RGB").resize((40, 30))
    with_alpha = small.convert("RGBA")
    with_alpha.putalpha(small.convert("L"))
    jpeg = [
        {},
        {"progressive": True},
        {"exif": exif},
        {"quality": 5},
        {"subsampling": 0},
        {"restart_marker_rows": 1},
    ]
    found = [_encoded(small, "JPEG", **options) for options in jpeg]
    found += [_encoded(small.convert(mode), "JPEG") for mode in ("L", "CMYK")]
    found += [_encoded(small.convert(mode), "PNG") for mode in ("RGB", "L", "1", "P", "LA", "I;16")]
    found += [_encoded(with_alpha, "PNG"), _encoded(small, "PNG", exif=exif, icc_profile=bytes(200))]
    found += [_encoded(with_alpha, "WEBP", lossless=lossless) for lossless in (True, False)]
    found += [_encoded(small, "WEBP", exif=exif), _encoded(small.resize((400, 300)), "JPEG")]
    moving = {"save_all": True, "append_images": [small.rotate(90)]}
    return (*found, *(_encoded(small, kind, **moving) for kind in ("WEBP", "PNG", "MPO")))


def _encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def _text(value: object) -> object:
    if isinstance(value, dict):
        return {name: _text(part) for name, part in value.items()}
    return base64.b64encode(value).decode() if isinstance(value, bytes) else value


def _part(name: str, value: object) -> bytes:
    content = (
        value
        if isinstance(value, bytes)
        else (value if isinstance(value, str) else json.dumps(value)).encode()
    )
    return b'--b\r\nContent-Disposition: form-data; name="%b"\r\n\r\n%b\r\n' % (name.encode(), content)


def _request(kind: bytes, framing: bytes, body: bytes) -> bytes:
    head = (
        b"POST /predictions/vla HTTP/1.1",
        b"Host: x",
        b"Content-Type: " + kind,
        b"X-Request-Id: fuzz",
        framing,
    )
    return b"\r\n".join((*head, b"", body))


def _chunked(body: bytes) -> bytes:
    half = len(body) // 2
    pieces = (body[:half], body[half:], b"")
    return b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces)
