"""The cost of decoding is known before it is paid, and bounded for a request and for a batch."""

import io
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from kinds import policy
from PIL import Image

from vla_runtime.budget import decoding_ms, too_much
from vla_runtime.errors import RequestError, TooLarge
from vla_runtime.images import Limits, open_image
from vla_runtime.observation import decode
from vla_runtime.policy import Answer, Policy
from vla_runtime.preprocessing import cost_ms, picture
from vla_runtime.spec import Camera

CAMERA = Camera(name="front", width=224, height=224)
NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (720, 960, 3), np.uint8))
SMOOTH = NOISE.resize((30, 24)).resize((960, 720), Image.Resampling.BICUBIC)
FLAT = Image.new("RGB", (960, 720), (90, 120, 30))


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def transparent(image: Image.Image) -> Image.Image:
    image = image.copy()
    image.putalpha(NOISE.getchannel(0))
    return image


PICTURES = {
    "JPEG": lambda image: encoded(image, "JPEG", quality=90),
    "JPEG of best quality": lambda image: encoded(image, "JPEG", quality=100, subsampling=0),
    "progressive JPEG": lambda image: encoded(image, "JPEG", quality=80, progressive=True),
    "CMYK JPEG": lambda image: encoded(image.convert("CMYK"), "JPEG"),
    "PNG": lambda image: encoded(image, "PNG", compress_level=1),
    "grey PNG": lambda image: encoded(image.convert("L"), "PNG", compress_level=1),
    "PNG with alpha": lambda image: encoded(transparent(image), "PNG", compress_level=1),
    "WebP": lambda image: encoded(image, "WEBP", quality=80, method=0),
    "WebP with alpha": lambda image: encoded(transparent(image), "WEBP", quality=80, method=0),
    "lossless WebP": lambda image: encoded(image, "WEBP", lossless=True, quality=0, method=0),
}


def taken_ms(data: bytes) -> float:
    """How long decoding takes this thread at best, whatever else the machine does [ms]."""
    best = float("inf")
    for _ in range(5):
        started = time.thread_time()
        picture(open_image(data, "image", Limits()), CAMERA, "image")
        best = min(best, time.thread_time() - started)
    return best * 1e3


def test_the_estimate_is_seldom_too_low_and_never_by_much() -> None:
    """Of each kind of picture, relative to the machine's own speed on a plain one."""
    factors = {}
    for kind, encode in PICTURES.items():
        for name, image in {"noise": NOISE, "smooth": SMOOTH, "flat": FLAT}.items():
            data = encode(image)
            factors[kind, name] = cost_ms(open_image(data, "image", Limits()), CAMERA) / taken_ms(data)
    print(*(f"{factor:5.2f} {key}" for key, factor in sorted(factors.items(), key=lambda f: f[1])), sep="\n")
    speed = factors["JPEG", "smooth"]  # nominal milliseconds in one of this machine

    assert all(0.33 < factor / speed < 12 for factor in factors.values())


PIXELS, SCALED = 960 * 720, 0.6 + 2.9 / 4
NOMINAL_NS: dict[str, Callable[[bytes], float]] = {
    "JPEG": lambda data: 12 * len(data) + PIXELS * SCALED,
    "progressive JPEG": lambda data: 45 * len(data) + PIXELS * (SCALED + 0.7 * data.count(b"\xff\xda")),
    "CMYK JPEG": lambda data: 2.5 * (12 * len(data) + PIXELS * SCALED),
    "PNG": lambda data: 27 * len(data) + 2.5 * 3 * PIXELS,
    "grey PNG": lambda data: 27 * len(data) + 2.5 * PIXELS,
    "PNG with alpha": lambda data: 27 * len(data) + 2.5 * 4 * PIXELS,
    "interlaced PNG": lambda data: 27 * len(data) + 2.5 * 3 * PIXELS * 2,
    "WebP": lambda data: 90 * lossy(data) + 16 * (len(data) - lossy(data)) + 8 * PIXELS,
    "WebP with alpha": lambda data: 90 * lossy(data) + 16 * (len(data) - lossy(data)) + 15 * PIXELS,
    "lossless WebP": lambda data: 16 * len(data) + 15 * PIXELS,
}


def lossy(data: bytes) -> int:
    at = data.index(b"VP8 ")
    return int.from_bytes(data[at + 4 : at + 8], "little")


def interlaced(image: Image.Image) -> bytes:
    """Return a PNG that says that it is interlaced; its pixels are not read here."""
    data = PICTURES["PNG"](image)
    head = data[12:28] + b"\x01"
    return data[:12] + head + zlib.crc32(head).to_bytes(4, "big") + data[33:]


@pytest.mark.parametrize("kind", NOMINAL_NS)
def test_costs_follow_from_the_headers(kind: str) -> None:
    """By the rates that were measured, for a picture at half its size and one of 224 x 224 made of it."""
    data = interlaced(SMOOTH) if kind == "interlaced PNG" else PICTURES[kind](SMOOTH)
    rest = 8 * PIXELS / 4 + 10 * 224 * 224 + 500_000

    cost = decoding_ms(open_image(data, "image", Limits()), scale=2, made=224 * 224)

    assert cost == pytest.approx((NOMINAL_NS[kind](data) + rest) / 1e6, rel=1e-9)


@pytest.mark.parametrize(
    ("encode", "changes"),
    [
        (PICTURES["WebP"], {"max_decode_ms": 5}),
        (PICTURES["PNG with alpha"], {"max_decode_ms": 30.0}),
    ],
)
def test_a_picture_that_costs_too_much_is_refused(
    encode: Callable[[Image.Image], bytes], changes: dict, tmp_path: Path
) -> None:
    spec = policy(lambda front: front, tmp_path, ("image.front",), cameras=(CAMERA,))[0].spec
    row = {"image": encode(SMOOTH)}

    assert decode(row, spec, 0.0).cost_ms > changes["max_decode_ms"]
    with pytest.raises(TooLarge, match=r"^decoding it costs \d+ ms, at most \d+ are spent on one ") as caught:
        decode(row, spec, 0.0, Limits(**changes))
    assert caught.value.field == "image"


def test_raw_pixels_cost_their_resizing_alone() -> None:
    data = np.zeros((480, 640, 3), np.uint8)
    raw = {"shape": [480, 640, 3], "dtype": "uint8", "data": data.tobytes()}

    raw_ms = cost_ms(open_image(raw, "image", Limits()), CAMERA)

    assert 0.5 < raw_ms < cost_ms(open_image(encoded(FLAT, "PNG"), "image", Limits()), CAMERA)


@pytest.mark.parametrize(
    ("costs", "refused"),
    [
        ({0: 1, 1: 1, 2: 1}, set()),
        ({0: 5, 1: 5, 2: 5}, set()),  # each within its share, together above the capacity
        ({0: 1, 1: 9, 2: 7, 3: 1}, {1}),  # the cheaper of the large ones
        ({3: 50}, set()),  # alone
        ({0: 50, 1: 60, 2: 1}, {1}),
        ({0: 6, 1: 6, 2: 6}, {1, 2}),  # of equals, the first
        ({0: 6, 1: 7, 2: -3}, set()),  # exactly what the batch takes on
        ({}, set()),
    ],
)
def test_who_costs_more_than_a_share_gets_what_is_left(costs: dict, refused: set) -> None:
    assert too_much(costs, capacity=10, share=5) == refused


def small(folder: Path, threads: int = 2, limits: Limits | None = None) -> Policy:
    """Make a policy that averages its picture; at most 4 requests a batch."""
    made, _ = policy(
        lambda images: images.mean((1, 2, 3))[:, None, None].expand(-1, 2, 2),
        folder,
        ("image.front",),
        threads=threads,
        limits=limits,
        cameras=(CAMERA,),
    )
    return made


def test_hostile_pictures_in_a_batch_are_not_decoded_and_delay_nobody(tmp_path: Path) -> None:
    """Counted, not timed: what a batch of 15 heavy requests beside a good one may cost at most."""
    heavy = {"image": PICTURES["PNG"](SMOOTH)}
    good = {"image": encoded(SMOOTH.resize((640, 480)), "JPEG")}
    # 40 ms with 2 threads, of which 10 are each one's share.
    strict = small(tmp_path, limits=Limits(batch_decode_ms=20))
    cost = decode(heavy, strict.spec, 0.0).cost_ms

    answers = strict.infer([*[heavy] * 7, good, *[heavy] * 8])

    answered = [isinstance(answer, Answer) for answer in answers]
    assert answered[7]
    assert cost > 10
    assert 1 <= sum(answered) - 1 <= 40 / cost < 4
    refused = next(answer for answer in answers if isinstance(answer, RequestError))
    assert (refused.status, refused.code, refused.field) == (503, "overloaded", None)


def test_a_lone_heavy_request_is_answered(tmp_path: Path) -> None:
    heavy = {"image": PICTURES["PNG"](SMOOTH)}
    strict = small(tmp_path, threads=1, limits=Limits(batch_decode_ms=1))

    assert isinstance(strict.infer([heavy])[0], Answer)
    assert sum(isinstance(answer, Answer) for answer in strict.infer([heavy] * 4)) == 1


def test_ordinary_robots_are_never_refused(tmp_path: Path) -> None:
    rows = [{"image": encoded(SMOOTH.resize((640, 480)), "JPEG", quality=90)}] * 32

    assert all(isinstance(answer, Answer) for answer in small(tmp_path).infer(rows))
