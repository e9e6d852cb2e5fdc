"""Normalisation, bins and rotations are exact; a spec that contradicts itself about actions is refused."""

import json
from collections.abc import Callable

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
    Statistics,
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

    np.testing.assert_allclose(
        normalise(np.array(physical, np.float32), vector), normalised, rtol=0, atol=3e-7
    )
    np.testing.assert_allclose(
        unnormalise(np.array(normalised, np.float32), vector), physical, rtol=0, atol=6e-8
    )


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


def test_a_replayed_example_may_differ_by_what_its_precision_rounds() -> None:
    """By 0.0039 differed one in bfloat16 on a processor with fewer instructions."""
    plain = spec(space())
    for changed, least in (({"precision": "bfloat16"}, 0.004), ({"tf32": True}, 0.001)):
        artifact = msgspec.structs.replace(plain.artifact, **changed)
        assert least < example_tolerance(msgspec.structs.replace(plain, artifact=artifact)) < 0.05


def test_quaternions_get_unit_norm() -> None:
    values = np.array([[0, 0, 3, 4], [0.1, 0, 0, 0], [0, 0, 0, 0]], np.float32)

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
    assert np.isnan(orthonormal_6d(np.array(values, np.float32))).any()


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


LOW, HIGH = np.array([-0.2, 0.1]), np.array([0.3, 0.9])
MEAN, STD = np.array([0.05, 0.4]), np.array([0.1, 0.25])
OWN = Statistics(
    mean=tuple(MEAN), std=tuple(STD), q01=tuple(LOW), q99=tuple(HIGH), low=tuple(LOW), high=tuple(HIGH)
)


@pytest.mark.parametrize(
    ("fields", "formula"),
    [
        # openpi's Normalize with quantiles, and its z-score
        (
            {"normalisation": "quantiles", "epsilon": 1e-6},
            lambda x: (x - LOW) / (HIGH - LOW + 1e-6) * 2 - 1,
        ),
        ({"normalisation": "mean_std", "epsilon": 1e-6}, lambda x: (x - MEAN) / (STD + 1e-6)),
        # LeRobot's min-max and mean-std
        ({"normalisation": "bounds", "epsilon": 1e-8}, lambda x: 2 * (x - LOW) / (HIGH - LOW + 1e-8) - 1),
        ({"normalisation": "mean_std", "epsilon": 1e-8}, lambda x: (x - MEAN) / (STD + 1e-8)),
        # An epsilon that shows
        ({"normalisation": "bounds", "epsilon": 0.5}, lambda x: 2 * (x - LOW) / (HIGH - LOW + 0.5) - 1),
        ({"normalisation": "identity"}, lambda x: x),
    ],
)
def test_ranges_of_their_own_and_epsilon(fields: dict, formula: Callable[[np.ndarray], np.ndarray]) -> None:
    vector = space(statistics=OWN, **fields)
    values = np.random.default_rng(0).uniform(-1, 1, (100, 2))

    normalised = normalise(values.astype(np.float32), vector)

    np.testing.assert_allclose(normalised, formula(values), rtol=0, atol=3e-6)
    np.testing.assert_allclose(unnormalise(normalised, vector), values, rtol=0, atol=1e-6)
    assert vector.low.tolist() == pytest.approx([-0.03, 0])  # the limits are the dimensions' own, as before


@pytest.mark.parametrize("low", [-1.0, 0.3, 17.123456, -123.4567])
@pytest.mark.parametrize("width", [0.0, 0.1, 7.654321])
@pytest.mark.parametrize("epsilon", [1e-6, 1e-8])
def test_a_value_that_rests_at_the_lower_end_stays_in_the_first_bin(
    low: float, width: float, epsilon: float
) -> None:
    statistics = Statistics(q01=(low, 0.0), q99=(low + width, 1.0))
    vector = space(normalisation="quantiles", statistics=statistics, epsilon=epsilon)

    assert vector.binned(np.array([low, 1.5], np.float32), 256) == [0, 255]


def test_bins_of_a_state_are_those_of_the_formula() -> None:
    values = np.random.default_rng(0).uniform(-0.1, 1.2, (500, 2))
    edges = np.linspace(-1, 1, 257)[:-1]
    for rule, normal in {
        "quantiles": lambda s: 2 * (values - s.q01) / (np.subtract(s.q99, s.q01) + 1e-6) - 1,
        "mean_std": lambda s: (values - s.mean) / (np.array(s.std) + 1e-6),
        "identity": lambda _: values,
    }.items():
        vector = space(normalisation=rule, epsilon=1e-6)

        found = [vector.binned(row, 256) for row in values]

        assert found == (np.digitize(normal(vector.statistics), edges) - 1).tolist()
        assert np.ptp(found, axis=0).min() > 40


def test_padding_is_zeros_that_come_off_again() -> None:
    vector = space(normalisation="identity", padded_to=5)
    values = np.array([[0.01, 0.5]], np.float32)

    normalised = normalise(values, vector)

    assert normalised.tolist() == [[*values[0].tolist(), 0, 0, 0]]
    np.testing.assert_array_equal(
        unnormalise(normalised + np.array([0, 0, 9, 9, 9], np.float32), vector), values
    )


@pytest.mark.parametrize("normalisation", ["mean_std", "quantiles"])
def test_missing_statistics_are_refused(normalisation: str) -> None:
    with pytest.raises(SpecError, match=r"^statistics\."):
        space(normalisation=normalisation, statistics=Statistics())


def test_padding_that_cuts_is_refused() -> None:
    with pytest.raises(SpecError, match=r"^padded_to is 1, less than the 2 dimensions \('x', 'gripper'\)"):
        space(padded_to=1)
