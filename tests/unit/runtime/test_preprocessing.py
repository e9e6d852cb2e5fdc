"""CLIP's image transform and tokenizer: equal to transformers' own, on real photographs and awkward text."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import skimage
import tokenizers
import torch
from PIL import Image, ImageOps
from tokenizers.models import Unigram
from tokenizers.pre_tokenizers import Metaspace
from transformers import CLIPImageProcessorPil, CLIPTokenizer, PreTrainedTokenizerFast

from vla_runtime.errors import BadImage, InvalidValue, SpecError
from vla_runtime.preprocessing import CommandTokenizer, decoded, normalise_pictures, picture
from vla_runtime.spec import Camera, Tokenizer

PHOTOGRAPHS = Path(skimage.__file__).parent / "data"
TOKENIZER_FOLDER = Path(__file__).parents[3] / "vla" / "assets" / "clip"
# Both do the same arithmetic in float32, in another order.
TOLERANCE = 1e-5
# Mean difference of a JPEG decoded at reduced scale [of 255]; `test_decoding.py` has it in an action's units.
REDUCED_GREY_LEVELS = 2.5

FILES = (
    "astronaut.png",  # 512 x 512
    "camera.png",  # 512 x 512, greyscale
    "chelsea.png",  # 451 x 300
    "coffee.png",  # 600 x 400
    "hubble_deep_field.jpg",  # 1000 x 872
    "logo.png",  # 500 x 500, RGBA
    "motorcycle_left.png",  # 741 x 500
    "retina.jpg",  # 1411 x 1411
    "rocket.jpg",  # 640 x 427
    "text.png",  # 448 x 172, greyscale: smaller than the crop, so enlarged
)


def photograph(name: str = "chelsea.png") -> Image.Image:
    return Image.open(PHOTOGRAPHS / name).convert("RGB")


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def rotated(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(photograph(), "JPEG", quality=95, exif=exif)


VARIANTS: dict[str, Callable[[], bytes]] = {
    **{name: (PHOTOGRAPHS / name).read_bytes for name in FILES},
    "palette": lambda: encoded(photograph().quantize(64), "PNG"),
    "greyscale with alpha": lambda: encoded(photograph().convert("LA"), "PNG"),
    "one bit": lambda: encoded(photograph().convert("1"), "PNG"),
    "CMYK": lambda: encoded(photograph().convert("CMYK"), "JPEG"),
    "progressive": lambda: encoded(photograph(), "JPEG", progressive=True),
    "WebP": lambda: encoded(photograph(), "WEBP", quality=80),
    "WebP with alpha": lambda: encoded(photograph("logo.png").convert("RGBA"), "WEBP", lossless=True),
    "portrait": lambda: encoded(photograph().rotate(90, expand=True), "PNG"),
    "exactly the crop": lambda: encoded(photograph().resize((224, 224)), "PNG"),
    "tiny": lambda: encoded(photograph().resize((7, 5)), "PNG"),
    "long and thin": lambda: encoded(photograph().resize((900, 40)), "PNG"),
    **{f"EXIF orientation {n}": lambda n=n: rotated(n) for n in range(1, 9)},
}


@pytest.mark.parametrize("size", [224, 96])
@pytest.mark.parametrize("variant", VARIANTS)
def test_image_transform_equals_transformers(variant: str, size: int) -> None:
    data = VARIANTS[variant]()
    camera = Camera(name="front", width=size, height=size)
    processor = CLIPImageProcessorPil(size={"shortest_edge": size}, crop_size={"height": size, "width": size})
    # transformers leaves the EXIF orientation to its `load_image`, which turns the picture like this.
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    expected = processor(upright.convert("RGB"), return_tensors="pt")["pixel_values"][0]

    pixels = picture(Image.open(io.BytesIO(data)), camera)

    assert (pixels.dtype, pixels.shape) == (np.uint8, (3, size, size))
    got = normalise_pictures(torch.tensor(pixels)[None, None], [camera])[0, 0]
    if reduced(data, size):
        grey_levels = (got - expected).abs() * torch.tensor(camera.std)[:, None, None] * 255
        assert 0 < grey_levels.mean() <= REDUCED_GREY_LEVELS
    else:
        assert (got - expected).abs().max() <= TOLERANCE


def reduced(data: bytes, size: int) -> bool:
    """Whether a file is a JPEG that is decoded at reduced scale."""
    image = Image.open(io.BytesIO(data))
    return image.format == "JPEG" and min(image.size) >= 2 * size


def test_large_jpeg_is_not_decoded_in_full() -> None:
    photo = photograph().resize((1280, 720))
    image = Image.open(io.BytesIO(encoded(photo, "JPEG")))

    assert decoded(image, Camera(name="front", width=224, height=224)).size == (640, 360)


def test_each_camera_has_its_own_channel_statistics() -> None:
    cameras = [
        Camera(name="a", width=2, height=2),
        Camera(name="b", width=2, height=2, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)),
    ]
    white = torch.full((1, 2, 3, 2, 2), 255, dtype=torch.uint8)

    got = normalise_pictures(white, cameras)

    assert got[0, 1].unique().tolist() == [1.0]
    assert got[0, 0, 0].unique().item() == pytest.approx((1 - 0.48145466) / 0.26862954)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (encoded(photograph(), "JPEG")[:4000], "the picture is damaged or cut short"),
        (encoded(photograph(), "PNG")[:4000], "the picture is damaged or cut short"),
        (encoded(photograph().resize((400, 4)), "PNG"), "400 x 4 pixels is too long and thin"),
    ],
)
def test_picture_that_cannot_be_used_is_refused(data: bytes, message: str) -> None:
    with pytest.raises(BadImage) as caught:
        picture(Image.open(io.BytesIO(data)), Camera(name="front", width=96, height=96), "image.front")

    assert (caught.value.field, caught.value.message) == ("image.front", message)


@pytest.fixture(scope="module")
def tokenizer() -> CommandTokenizer:
    return CommandTokenizer(
        TOKENIZER_FOLDER, Tokenizer(file="tokenizer.json", context_length=77, pad_id=49407)
    )


@pytest.fixture(scope="module")
def reference() -> CLIPTokenizer:
    """transformers' tokenizer, made from the vocabulary and the merges alone."""
    model = json.loads((TOKENIZER_FOLDER / "tokenizer.json").read_text())["model"]
    merges: Any = [tuple(merge) for merge in model["merges"]]
    return CLIPTokenizer(vocab=model["vocab"], merges=merges, model_max_length=77)


COMMANDS = (
    "a photo of a cat",
    "Push the RED block forward!",
    "  pick   up\tthe\nblue cube  ",
    "don't touch it, it's the robot's",
    "move 12.5 cm to the left, then 300 mm up",
    "reach — “the green one” … naïve café",
    "把红色的方块推开",
    "tack så mycket \U0001f916 \U0001f468‍\U0001f469‍\U0001f467",
    "x" * 60,
    "é e\u0301 \u00a0 nbsp",
    "<|endoftext|> inside",
    "!?",
)


@pytest.mark.parametrize("command", COMMANDS)
def test_tokens_equal_transformers(
    tokenizer: CommandTokenizer, reference: CLIPTokenizer, command: str
) -> None:
    expected = reference(command, padding="max_length")

    ids, mask = tokenizer(command)

    assert ids.tolist() == expected["input_ids"]
    assert mask.tolist() == expected["attention_mask"]


def test_vocabulary_is_clips(tokenizer: CommandTokenizer) -> None:
    """Token ids that OpenAI's own tokenizer gives."""
    assert tokenizer.vocabulary == 49408
    ids, mask = tokenizer("a photo of a cat")
    assert ids[:7].tolist() == [49406, 320, 1125, 539, 320, 2368, 49407]
    assert mask.sum() == 7


def test_command_of_too_many_tokens_is_refused_not_cut(tokenizer: CommandTokenizer) -> None:
    assert tokenizer("block " * 75)[1].sum() == 77

    with pytest.raises(InvalidValue) as caught:
        tokenizer("block " * 76)

    assert (caught.value.field, caught.value.message) == (
        "command",
        "has 78 tokens; the policy reads at most 77",
    )


def test_missing_tokenizer_is_named(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"^tokenizer none\.json can't be read: "):
        CommandTokenizer(tmp_path, Tokenizer(file="none.json", context_length=77, pad_id=0))


def test_a_converted_sentencepiece_tokenizer_is_read(tmp_path: Path) -> None:
    """Unigram pieces with `▁` for a space: what the `tokenizers` library makes of T5's and its like."""
    pieces = [("<pad>", 0.0), ("<unk>", 0.0), ("▁", -5.0), ("▁lift", -1.0), ("▁the", -1.0), ("▁block", -1.0)]
    letters = [(letter, -9.0) for letter in "abcdefghijklmnopqrstuvwxyz"]
    made = tokenizers.Tokenizer(Unigram([*pieces, *letters], unk_id=1))
    made.pre_tokenizer = Metaspace(replacement="▁", prepend_scheme="always")
    made.save(str(tmp_path / "tokenizer.json"))
    reference = PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "tokenizer.json"))

    tokenizer = CommandTokenizer(tmp_path, Tokenizer(file="tokenizer.json", context_length=8, pad_id=0))
    ids, mask = tokenizer("lift the red block")

    assert ids[mask == 1].tolist() == reference("lift the red block")["input_ids"]
    assert ids[:2].tolist() == [3, 4]
    assert ids.shape == mask.shape == (8,)
