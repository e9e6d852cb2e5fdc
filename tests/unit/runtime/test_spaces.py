"""Normalisation, bins and rotations are exact; a spec that contradicts itself about actions is refused."""

import json

import msgspec
import numpy as np
import pytest
import torch
from action_spaces import QUATERNION, SYMBOLS, space, spec

from vla_runtime.actions import (
    decode,
    decode_bins,
    encode,
    encode_bins,
    encode_names,
    example_tolerance,
    normalise,
    unnormalise,
)
from vla_runtime.errors import SpecError
from vla_runtime.rotations import orthonormal_6d, unit_quaternion
from vla_runtime.spec import (
    ActionSpace,
    BinnedSpace,
    ContinuousSpace,
    Dimension,
    DiscreteSpace,
    PolicySpec,
    Rotation,
)


@pytest.mark.parametrize(
    ("normalisation", "passthrough", "physical", "normalised"),
    [
        ("bounds", (), [0.03, 1.0], [1.0, 1.0]),
        ("bounds", (), [-0.015, 0.25], [-0.5, -0.5]),
        ("bounds", ("gripper",), [0.03, 0.25], [1.0, 0.25]),
        ("mean_std", (), [0.012, 0.3], [1.0, -1.0]),
        ("mean_std", ("gripper",), [0.012, 0.3], [1.0, 0.3]),
        ("quantiles", (), [0.025, 0.1], [1.0, -1.0]),
        ("quantiles", ("x", "gripper"), [0.025, 0.1], [0.025, 0.1]),
    ],
)
def test_normalisation(normalisation: str, passthrough: tuple, physical: list, normalised: list) -> None:
    vector = space(normalisation=normalisation, passthrough=passthrough)

    np.testing.assert_allclose(normalise(np.float32(physical), vector), normalised, rtol=0, atol=3e-7)
    np.testing.assert_allclose(unnormalise(np.float32(normalised), vector), physical, rtol=0, atol=6e-8)


@pytest.mark.parametrize("normalisation", ["bounds", "mean_std", "quantiles"])
@pytest.mark.parametrize("passthrough", [(), ("gripper",)])
def test_the_pair_is_inverse_to_float32s_rounding(normalisation: str, passthrough: tuple) -> None:
    vector = space(normalisation=normalisation, passthrough=passthrough)
    values = np.random.default_rng(0).uniform(vector.low, vector.high, (1000, 2)).astype(np.float32)

    back = unnormalise(normalise(values, vector), vector)

    np.testing.assert_allclose(back, values, rtol=0, atol=float(np.spacing(vector.scale + vector.high).max()))
    if passthrough:
        np.testing.assert_array_equal(back[:, 1], values[:, 1])


@pytest.mark.parametrize("bins", [2, 7, 256])
def test_bins_come_back_within_half_a_bin(bins: int) -> None:
    values = torch.linspace(-1, 1, 10_001)

    indices = encode_bins(values, bins)
    back = decode_bins(indices, bins)

    assert (indices.dtype, int(indices.min()), int(indices.max())) == (torch.int64, 0, bins - 1)
    assert float((back - values).abs().max()) <= 1 / bins + 1e-6
    assert torch.equal(encode_bins(back, bins), indices)


@pytest.mark.parametrize(
    ("value", "index", "centre"),
    [(-1.0, 0, -0.75), (-0.5, 1, -0.25), (0.0, 2, 0.25), (0.999, 3, 0.75), (1.0, 3, 0.75), (9.0, 3, 0.75)],
)
def test_four_bins(value: float, index: int, centre: float) -> None:
    assert encode_bins(torch.tensor(value), 4).item() == index
    assert decode_bins(torch.tensor(index), 4).item() == centre


@pytest.mark.parametrize("normalisation", ["bounds", "quantiles"])
def test_binned_actions_in_physical_units(normalisation: str) -> None:
    binned = space(BinnedSpace, normalisation=normalisation, passthrough=("gripper",), bins=16)
    inside = np.random.default_rng(0).uniform(-1, 1, (500, 2)).astype(np.float32)
    values = unnormalise(inside, binned)

    indices = encode(values, binned)

    assert (indices.dtype, indices.min(), indices.max()) == (np.int64, 0, 15)
    half_a_bin = binned.scale / 16
    assert (np.abs(decode(indices, binned) - values) <= half_a_bin * 1.0001).all()


def test_a_replayed_example_may_differ_by_a_bin() -> None:
    assert example_tolerance(spec(space(BinnedSpace, bins=200))) == pytest.approx(0.01, rel=1e-3)
    assert example_tolerance(spec(space())) == example_tolerance(spec(SYMBOLS)) == 1e-3


def test_quaternions_get_unit_norm() -> None:
    values = np.float32([[0, 0, 3, 4], [0.1, 0, 0, 0], [0, 0, 0, 0]])

    mended = unit_quaternion(values)

    np.testing.assert_allclose(mended[:2], [[0, 0, 0.6, 0.8], [1, 0, 0, 0]], rtol=0, atol=1e-7)
    assert np.isnan(mended[2]).all()


def test_6d_rotations_become_orthonormal() -> None:
    values = np.random.default_rng(0).normal(size=(100, 5, 6)).astype(np.float32)

    mended = orthonormal_6d(values)

    first, second = mended[..., :3], mended[..., 3:]
    matrix = np.stack([first, second, np.cross(first, second)], axis=-1)
    np.testing.assert_allclose(
        matrix.swapaxes(-1, -2) @ matrix, np.broadcast_to(np.eye(3), matrix.shape), atol=1e-6
    )
    np.testing.assert_allclose(np.linalg.det(matrix), 1, atol=1e-6)
    # Gram-Schmidt keeps the direction of the first column, and a valid rotation as it is.
    np.testing.assert_allclose(np.cross(first, values[..., :3]), 0, atol=1e-6)
    np.testing.assert_allclose(orthonormal_6d(mended), mended, atol=1e-6)


@pytest.mark.parametrize("values", [[0, 0, 0, 1, 0, 0], [1, 0, 0, 2, 0, 0], [1, 0, 0, 0, 0, 0]])
def test_6d_rotation_that_is_none_is_not_a_number(values: list) -> None:
    assert np.isnan(orthonormal_6d(np.float32(values))).any()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"passthrough": ("grip",)}, r"^passthrough names 'grip'; the dimensions are \('x', 'gripper', 'qx'"),
        (
            {"rotations": (Rotation(kind="quaternion", dimensions=("qx", "qy", "qz", "w")),)},
            r"^a quaternion names \['w'\]; the dimensions are \('x', ",
        ),
        (
            {"rotations": (Rotation(kind="rotation_6d", dimensions=QUATERNION),)},
            r"^a rotation_6d has 6 dimensions, got \('qx', ",
        ),
        (
            {"rotations": (Rotation(kind="quaternion", dimensions=("x", "qx", "qy", "qz")),)},
            r"^x: part of a quaternion, whose bounds must not be within -1 and 1, got -0\.03 and 0\.03",
        ),
        (
            {"rotations": (Rotation(kind="quaternion", dimensions=QUATERNION),) * 2},
            r"^a dimension may belong to one rotation only, got \['qx', ",
        ),
        ({"kind": BinnedSpace, "bins": 1}, r"^bins must be 2 at least, got 1"),
        ({"kind": BinnedSpace, "normalisation": "mean_std"}, r"^binned actions need bounds or quantiles"),
    ],
)
def test_contradictory_space_is_refused(fields: dict, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        space(names=QUATERNION, **fields)


def test_passthrough_beyond_the_bins_is_refused() -> None:
    wide = (*space().dimensions[:1], Dimension(name="gripper", unit="mm", low=0.0, high=85.0))

    with pytest.raises(
        SpecError, match=r"^gripper: not normalised, and its bounds 0\.0 and 85\.0 reach beyond"
    ):
        space(BinnedSpace, dimensions=wide, passthrough=("gripper",))


def test_unknown_action_is_refused_by_name() -> None:
    np.testing.assert_array_equal(encode_names(["open", "pick_up"], SYMBOLS), [3, 1])
    message = r"^unknown action 'fly'; available: navigate_to, pick_up, place_at, open, close, stop$"
    with pytest.raises(SpecError, match=message):
        encode_names(["open", "fly"], SYMBOLS)
    tiny = spec(SYMBOLS)
    with pytest.raises(SpecError, match=message):
        msgspec.structs.replace(tiny, example=msgspec.structs.replace(tiny.example, names=("fly",)))


@pytest.mark.parametrize("action", [space(), space(BinnedSpace, bins=32), SYMBOLS])
def test_every_space_says_its_kind_in_json(action: ActionSpace) -> None:
    text = msgspec.json.encode(spec(action))

    kinds = {ContinuousSpace: "continuous", BinnedSpace: "binned", DiscreteSpace: "discrete"}
    assert json.loads(text)["action"]["kind"] == kinds[type(action)]
    assert msgspec.json.decode(text, type=PolicySpec) == spec(action)
