"""Each camera rule beside the library that defines it; `test_preprocessing.py` holds CLIP's crop."""

import io
from pathlib import Path

import numpy as np
import pytest
import skimage
import torch
from PIL import Image
from transformers import SiglipImageProcessorPil

from vla_runtime.errors import InvalidValue
from vla_runtime.preprocessing import FILTERS, decoded, normalise_picture, picture
from vla_runtime.spec import Camera, Interpolation, Resize

PHOTOGRAPH = Image.open(Path(skimage.__file__).parent / "data" / "chelsea.png").convert("RGB")  # 451 x 300
SIZES = [(451, 300), (300, 451), (640, 480), (1280, 720), (224, 224), (90, 50), (333, 777)]


def photograph(size: tuple[int, int]) -> Image.Image:
    return PHOTOGRAPH.resize(size, Image.Resampling.BICUBIC)


def resize_with_pad(image: Image.Image, height: int, width: int) -> np.ndarray:
    """The arithmetic of openpi-client 0.1.2, `image_tools.resize_with_pad`: uint8 [H, W, 3]."""
    if image.size == (width, height):
        return np.asarray(image)
    ratio = max(image.width / width, image.height / height)
    smaller = image.resize((int(image.width / ratio), int(image.height / ratio)), Image.Resampling.BILINEAR)
    canvas = np.zeros((height, width, 3), np.uint8)
    top, left = max(0, int((height - smaller.height) / 2)), max(0, int((width - smaller.width) / 2))
    canvas[top : top + smaller.height, left : left + smaller.width] = np.asarray(smaller)
    return canvas


@pytest.mark.parametrize("target", [(224, 224), (320, 240)])
@pytest.mark.parametrize("size", SIZES)
def test_pad_is_openpis(size: tuple[int, int], target: tuple[int, int]) -> None:
    image, (width, height) = photograph(size), target
    camera = Camera(name="front", width=width, height=height, resize="pad", interpolation="bilinear")

    seen = picture(image, camera)

    np.testing.assert_array_equal(seen, resize_with_pad(photograph(size), height, width).transpose(2, 0, 1))


@pytest.mark.parametrize("size", SIZES)
def test_stretch_is_that_of_a_transformers_processor(size: tuple[int, int]) -> None:
    """SigLIP's, one of OpenVLA's two towers, which stretches by Pillow's bicubic filter."""
    camera = Camera(name="front", width=224, height=224, resize="stretch", values="minus_one_to_one")
    processor = SiglipImageProcessorPil(
        size={"height": 224, "width": 224}, resample=3, image_mean=(0.5,) * 3, image_std=(0.5,) * 3
    )
    expected = processor(photograph(size), return_tensors="pt")["pixel_values"][0]

    got = normalise_picture(torch.tensor(picture(photograph(size), camera)), camera)

    assert (got - expected).abs().max() <= 1e-6


@pytest.mark.parametrize("interpolation", FILTERS)
def test_every_filter_is_pillows(interpolation: Interpolation) -> None:
    camera = Camera(name="a", width=64, height=48, resize="stretch", interpolation=interpolation)

    seen = picture(photograph((451, 300)), camera)

    expected = photograph((451, 300)).resize((64, 48), FILTERS[interpolation])
    np.testing.assert_array_equal(seen.transpose(1, 2, 0), np.asarray(expected))


def test_none_takes_the_pixels_as_they_are() -> None:
    """As LeRobot's ACT: `ToTensor`, uint8 divided by 255."""
    camera = Camera(name="a", width=64, height=48, resize="none", values="zero_to_one")
    image = photograph((64, 48))

    got = normalise_picture(torch.tensor(picture(image, camera)), camera)

    assert (got - torch.tensor(np.asarray(image).transpose(2, 0, 1)) / 255).abs().max() <= 1e-7


def test_none_refuses_another_size() -> None:
    with pytest.raises(InvalidValue) as caught:
        picture(photograph((48, 64)), Camera(name="a", width=64, height=48, resize="none"), "image.a")

    assert (caught.value.status, caught.value.field) == (422, "image.a")
    assert caught.value.message == "must have 64 x 48 pixels, got 48 x 64"


@pytest.mark.parametrize("size", SIZES)
def test_crop_fills_a_camera_that_is_not_square(size: tuple[int, int]) -> None:
    camera = Camera(name="a", width=160, height=96, resize="crop")

    seen = picture(photograph(size), camera)

    scale = max(160 / size[0], 96 / size[1])
    box = ((size[0] - 160 / scale) / 2, (size[1] - 96 / scale) / 2)
    whole = photograph(size).resize(
        (160, 96), Image.Resampling.BICUBIC, box=(*box, size[0] - box[0], size[1] - box[1])
    )
    assert seen.shape == (3, 96, 160)
    # The same part of the picture: the grid differs by less than a pixel.
    assert np.abs(seen.transpose(1, 2, 0).astype(int) - np.asarray(whole).astype(int)).mean() < 6


@pytest.mark.parametrize(
    ("resize", "interpolation", "size"),
    [
        ("crop", "bicubic", (640, 360)),
        ("pad", "bilinear", (320, 180)),
        ("stretch", "bicubic", (640, 360)),  # it may be turned upright later: 150 x 224
        ("stretch", "nearest", (1280, 720)),  # picks single pixels, which a reduced picture no longer has
        ("none", "bicubic", (1280, 720)),
    ],
)
def test_a_large_jpeg_is_decoded_no_larger_than_its_rule_needs(
    resize: Resize, interpolation: Interpolation, size: tuple[int, int]
) -> None:
    file = io.BytesIO()
    photograph((1280, 720)).save(file, "JPEG")
    height = 150 if resize == "stretch" else 224
    camera = Camera(name="a", width=224, height=height, resize=resize, interpolation=interpolation)

    assert decoded(Image.open(file), camera).size == size
