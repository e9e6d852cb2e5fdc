"""Each rule of a spec at its edge: what is just allowed is taken, what is just beyond is refused in words."""

import json
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from action_spaces import QUATERNION, SYMBOLS, space, spec

from vla_runtime.errors import SpecError
from vla_runtime.rotations import unit_quaternion
from vla_runtime.spec import (
    ArtifactSpec,
    BinnedSpace,
    Camera,
    ContinuousSpace,
    Dimension,
    DiscreteSpace,
    Example,
    Extra,
    Part,
    Platform,
    PolicySpec,
    Rotation,
    Safety,
    Statistics,
    Tokenizer,
    Vector,
    dumps,
)

FORMAT_1 = Path(__file__).parent / "data" / "policy_format_1.json"
X = Dimension(name="x", unit="m", low=-1.0, high=1.0)
HERE = Platform(device="cpu", torch="2.0.0", capability="AVX2")
PARTS: dict[str, Part] = {
    "dimension": X,
    "statistics": Statistics(),
    "vector": Vector(dimensions=(X,), normalisation="identity", statistics=Statistics()),
    "continuous": space(),
    "binned": space(BinnedSpace),
    "discrete": SYMBOLS,
    "rotation": Rotation(kind="quaternion", dimensions=QUATERNION),
    "camera": Camera(name="a", width=1, height=1),
    "tokenizer": Tokenizer(file="t.json", context_length=1, pad_id=0),
    "extra": Extra(),
    "platform": HERE,
    "artifact": spec(space()).artifact,
    "example": spec(space()).example,
    "safety": Safety(),
    "policy": spec(space()),
}


def refused(message: str, kind: type[Part], **fields: Any) -> None:
    with pytest.raises(SpecError, match=f"^{message}"):
        kind(**fields)


@pytest.mark.parametrize("name", PARTS)
def test_a_part_never_changes_and_takes_no_unknown_key(name: str) -> None:
    part = PARTS[name]
    field = part.__struct_fields__[0]
    with pytest.raises(AttributeError, match="immutable"):
        setattr(part, field, None)
    plain = json.loads(msgspec.json.encode(part))
    assert msgspec.convert(plain, type(part)) == part
    with pytest.raises(msgspec.ValidationError, match="unknown field `surplus`"):
        msgspec.convert(plain | {"surplus": 1}, type(part))


@pytest.mark.parametrize("kind", [Vector, ContinuousSpace, BinnedSpace, DiscreteSpace])
def test_parts_of_a_vector_are_named(kind: Any) -> None:
    with pytest.raises(TypeError, match="positional"):
        kind((X,))


def test_what_a_spec_may_leave_out() -> None:
    assert json.loads(msgspec.json.encode(X)) == {"name": "x", "unit": "m", "low": -1.0, "high": 1.0}
    assert (X.meaning, X.state, X.relative) == (None, None, False)
    binned = space(BinnedSpace)
    assert (binned.bins, binned.saturating, binned.epsilon, binned.padded_to) == (256, False, 0.0, None)
    assert Extra() == Extra(labels=(), pieces=(), unit="1")
    tokenizer = Tokenizer(file="t.json", context_length=1, pad_id=0)
    assert (tokenizer.padding, tokenizer.side, tokenizer.template) == ("fixed", "right", "{command}")
    tiny = spec(space())
    assert (tiny.history, tiny.noise, tiny.max_delay, tiny.format_version) == (1, None, 0, 2)
    made = tiny.artifact
    assert (made.format, made.precision, made.tf32, made.compiled) == ("torchscript", "float32", False, False)


def test_values_of_pixels() -> None:
    camera = Camera(name="a", width=8, height=8)
    # CLIP's, Radford et al. 2021
    clip = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
    assert camera.statistics == clip
    assert (camera.resize, camera.interpolation) == ("crop", "bicubic")
    replace = msgspec.structs.replace
    assert replace(camera, values="zero_to_one").statistics == ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    assert replace(camera, values="minus_one_to_one").statistics == ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


@pytest.mark.parametrize("bounds", [(-np.inf, 1.0), (0.0, np.inf), (np.nan, 1.0), (1.0, 0.0), (0.5, 0.5)])
def test_bounds_are_finite_and_in_order(bounds: tuple[float, float]) -> None:
    low, high = bounds
    refused(f"x: needs low < high, got {low} and {high}$", Dimension, name="x", unit="m", low=low, high=high)


@pytest.mark.parametrize(
    "fields", [{}, {"state": "x"}, {"meaning": "absolute"}, {"state": "x", "meaning": "delta"}]
)
def test_what_is_relative_is_a_position_that_is_measured(fields: dict[str, Any]) -> None:
    given = {"name": "x", "unit": "m", "low": -1.0, "high": 1.0, "relative": True}
    refused("x: a relative dimension needs meaning 'absolute' and a dimension ", Dimension, **given | fields)
    assert Dimension(**given, state="x", meaning="absolute").relative


def test_statistics_are_named_by_their_values() -> None:
    digest = Statistics(mean=(1.0,), std=(2.0,)).sha256()
    assert digest == Statistics(mean=(1.0,), std=(2.0,)).sha256()
    assert len(bytes.fromhex(digest)) == 32
    assert digest != Statistics(mean=(1.0,), std=(3.0,)).sha256()


def by(normalisation: str, **statistics: Any) -> dict[str, Any]:
    return {"normalisation": normalisation, "statistics": Statistics(**statistics)}


TOGETHER = r"statistics\.low and statistics\.high come together or not at all$"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"dimensions": (X, X)}, r"dimensions need distinct names, got \('x', 'x'\)$"),
        ({"dimensions": ()}, "a vector needs one dimension at least$"),
        ({"epsilon": -1e-9}, r"epsilon must not be negative, got -1e-09$"),
        ({"padded_to": 0}, r"padded_to is 0, less than the 1 dimensions \('x',\)$"),
        ({"passthrough": ("y",)}, r"passthrough names 'y'; the dimensions are \('x',\)$"),
        (by("mean_std", mean=(0.0,), std=(0.0,)), r"x: mean_std .* got 0\.0$"),
        (by("mean_std", mean=(0.0,), std=(np.inf,)), r"x: mean_std .* got inf$"),
        (by("mean_std", mean=(0.0,), std=(-1.0,)), r"x: mean_std .* got -1\.0$"),
        (by("quantiles", q01=(1.0,), q99=(0.0,)), r"x: quantiles .* got -0\.5$"),
        (by("mean_std", std=(1.0,)), r"statistics\.mean has 0 values "),
        (by("mean_std", mean=(1.0,)), r"statistics\.std has 0 values "),
        (by("quantiles", q99=(1.0,)), r"statistics\.q01 has 0 values "),
        (by("quantiles", q01=(1.0,)), r"statistics\.q99 has 0 values "),
        (by("bounds", mean=(0.0, 1.0)), r"statistics\.mean has 2 values for the dimensions \('x',\)$"),
        (by("bounds", high=(0.0, 1.0)), r"statistics\.high has 2 values for the dimensions \('x',\)$"),
        (by("bounds", low=(0.0,)), TOGETHER),
        (by("bounds", high=(0.0,)), TOGETHER),
    ],
)
def test_a_vector_contradicts_itself_nowhere(fields: dict[str, Any], message: str) -> None:
    given = {"dimensions": (X,), "normalisation": "bounds", "statistics": Statistics()}
    refused(message, Vector, **given | fields)


def test_the_least_that_a_vector_needs() -> None:
    vector = Vector(
        dimensions=(X,), normalisation="bounds", statistics=Statistics(), padded_to=1, epsilon=1e-12
    )
    assert (vector.policy_width, vector.names) == (1, ("x",))
    small = Vector(dimensions=(X,), normalisation="mean_std", statistics=Statistics(mean=(0.0,), std=(1e-6,)))
    assert small.scale.tolist() == [np.float32(1e-6)]


@pytest.mark.parametrize("kind", ["continuous", "discrete"])
@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"horizon": 0}, "horizon must be positive, got 0$"),
        ({"horizon": -1}, "horizon must be positive, got -1$"),
        ({"control_hz": 0.0}, r"control_hz must be positive, got 0\.0$"),
        ({"control_hz": -5.0}, r"control_hz must be positive, got -5\.0$"),
    ],
)
def test_a_chunk_takes_time(kind: str, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=f"^{message}"):
        msgspec.structs.replace(PARTS[kind], **fields)
    slow = msgspec.structs.replace(PARTS[kind], horizon=1, control_hz=0.25)
    assert slow.horizon == 1  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize(
    ("low", "high", "good"),
    [
        (-1.0, 1.0, True),
        (-1.5, 1.5, True),
        (-0.9, 1.0, False),
        (-1.0, 0.9, False),
        (0.5, 1.0, False),
    ],
)
def test_a_rotations_bounds_hold_every_rotation(low: float, high: float, good: bool) -> None:  # noqa: FBT001
    turn = tuple(Dimension(name=name, unit="1", low=low, high=high) for name in QUATERNION)
    fields = {"dimensions": (X, *turn), "statistics": Statistics(), "normalisation": "identity"}
    rotations = (Rotation(kind="quaternion", dimensions=QUATERNION),)
    if good:
        assert space(**fields, rotations=rotations).rotating == set(QUATERNION)
    else:
        with pytest.raises(SpecError, match=r"^qx: part of a quaternion, whose bounds must not be within"):
            space(**fields, rotations=rotations)


@pytest.mark.parametrize(
    ("low", "high", "good"),
    [
        (-1.0, 1.0, True),
        (-0.5, 0.5, True),
        (-2.0, 1.0, False),
        (-1.0, 2.0, False),
        (-1.5, 1.0, False),
        (-1.0, 1.5, False),
        (-9.0, 9.0, False),
    ],
)
def test_bins_end_at_minus_one_and_one(low: float, high: float, good: bool) -> None:  # noqa: FBT001
    own = Dimension(name="own", unit="1", low=low, high=high)
    wide = Dimension(name="wide", unit="mm", low=-50.0, high=50.0)
    fields = {"dimensions": (wide, own), "statistics": Statistics(), "passthrough": ("own",)}
    if good:
        assert space(BinnedSpace, bins=2, **fields).bins == 2
    else:
        with pytest.raises(SpecError, match=r"^own: not normalised, and its bounds "):
            space(BinnedSpace, bins=2, **fields)


@pytest.mark.parametrize("vocabulary", [(), ("go",), ("go", ""), ("go", "go"), ("go", "stop", "go")])
def test_a_vocabulary_has_two_distinct_names(vocabulary: tuple[str, ...]) -> None:
    refused(
        "vocabulary needs two distinct names at least, got ",
        DiscreteSpace,
        vocabulary=vocabulary,
        horizon=1,
        control_hz=1.0,
    )
    two = DiscreteSpace(vocabulary=("go", "stop"), horizon=1, control_hz=1.0)
    assert (two.width, two.names, two.output, two.index("stop")) == (2, ("go", "stop"), "logits", 1)


@pytest.mark.parametrize(("length", "good"), [(2e-6, True), (9e-7, False)])
def test_a_quaternion_too_short_has_no_direction(length: float, good: bool) -> None:  # noqa: FBT001
    made = unit_quaternion(np.array([0, 0, length, 0], np.float32))
    assert np.isfinite(made).all() == good
    if good:
        assert made.tolist() == [0, 0, 1, 0]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"width": 0}, "camera 'a': width and height must be positive, got 0 and 1$"),
        ({"height": -1}, "camera 'a': width and height must be positive, got 1 and -1$"),
        ({"std": (0.5, 0.5, -0.5)}, r"camera 'a': std must be positive, got \(0\.5, 0\.5, -0\.5\)$"),
        ({"name": "1st"}, "camera '1st': the name must be letters, digits and _$"),
    ],
)
def test_a_camera_has_a_size_and_a_name(fields: dict[str, Any], message: str) -> None:
    given = {"name": "a", "width": 1, "height": 1}
    assert Camera(**given).width == 1
    refused(message, Camera, **given | fields)


@pytest.mark.parametrize("template", ["", "do it", "{command} {command}"])
def test_a_template_has_one_place_for_the_command(template: str) -> None:
    message = r"template needs '\{command\}' exactly once, got "
    refused(message, Tokenizer, file="t", context_length=1, pad_id=0, template=template)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"buckets": ()}, r"buckets must ascend from at least 1, got \(\)$"),
        ({"buckets": (0, 1)}, r"buckets must ascend from at least 1, got \(0, 1\)$"),
        ({"buckets": (2, 1)}, r"buckets must ascend from at least 1, got \(2, 1\)$"),
        ({"buckets": (1, 1)}, r"buckets must ascend from at least 1, got \(1, 1\)$"),
        ({"format": "pt2"}, "format 'pt2' and platform None contradict each other$"),
        (
            {"platform": HERE},
            r"format 'torchscript' and platform cpu \(AVX2\) under torch 2\.0\.0 contradict each other$",
        ),
        ({"format": "eager"}, "format 'eager' and factory None contradict each other$"),
        ({"factory": "a:b"}, "format 'torchscript' and factory 'a:b' contradict each other$"),
        ({"format": "eager", "factory": "a:b", "platform": HERE}, "format 'eager' and platform "),
        ({"compiled": True}, "compiled is for format 'eager' alone, got 'torchscript'$"),
        (
            {"outputs": ("actions", "skill")},
            r"outputs \['skill'\] need a declaration each in extras, which has \[\]$",
        ),
        (
            {"extras": {"skill": Extra()}},
            r"outputs \[\] need a declaration each in extras, which has \['skill'\]$",
        ),
        (
            {"extras": {"actions": Extra()}},
            r"outputs \[\] need a declaration each in extras, which has \['actions'\]$",
        ),
    ],
)
def test_an_artifact_contradicts_itself_nowhere(fields: dict[str, Any], message: str) -> None:
    given = {"file": "f", "command": (), "inputs": (), "buckets": (1,), "outputs": ("actions",)}
    refused(message, ArtifactSpec, **given | fields)


def test_an_extra_is_labels_or_a_text_that_can_end() -> None:
    refused(
        "an extra has labels, one for each index, or pieces of one text, not both$",
        Extra,
        labels=("a",),
        pieces=("", "b"),
    )
    refused("pieces need an empty one, which ends a text, got 2 others$", Extra, pieces=("a", "b"))
    assert msgspec.json.decode(b'{"pieces": ["", " a"]}', type=Extra).pieces == ("", " a")


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"buckets": (2, 4, 32)},
        {"format": "pt2", "platform": HERE},
        {"format": "eager", "factory": "a:b"},
        {"format": "eager", "factory": "a:b", "compiled": True},
        {"outputs": ("actions", "logits", "confidence", "attention")},
        {"outputs": ("actions", "skill"), "extras": {"skill": Extra()}},
    ],
)
def test_artifacts_of_every_format(fields: dict[str, Any]) -> None:
    given = {"file": "f", "command": (), "inputs": (), "buckets": (1,), "outputs": ("actions",)}
    made = ArtifactSpec(**given | fields)
    assert msgspec.json.decode(msgspec.json.encode(made), type=ArtifactSpec) == made


SMALL = spec(space(horizon=4))
FRONT, BACK = Camera(name="front", width=8, height=8), Camera(name="back", width=8, height=8)


def changed(artifact: dict[str, Any] | None = None, **fields: Any) -> PolicySpec:
    made = msgspec.structs.replace(SMALL.artifact, **(artifact or {}))
    return msgspec.structs.replace(SMALL, artifact=made, **fields)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"cameras": ()}, r"cameras need distinct names, got \[\]$"),
        ({"cameras": (FRONT, FRONT)}, r"cameras need distinct names, got \['front', 'front'\]$"),
        ({"history": 0}, "history must be 1 at least, got 0$"),
        ({"noise": ()}, r"noise needs sizes, got \(\)$"),
        ({"noise": (2, 0)}, r"noise needs sizes, got \(2, 0\)$"),
        ({"noise": (-1,)}, r"noise needs sizes, got \(-1,\)$"),
        ({"max_delay": -1}, "max_delay must be from 0 to 3, got -1$"),
        ({"max_delay": 4}, "max_delay must be from 0 to 3, got 4$"),
        ({"max_delay": 3}, r"max_delay is 3, and of 'prefix' and 'delay' artifact\.inputs names \[\]$"),
        ({"tokenizer": None}, r"artifact\.command is \('words',\), and the tokenizer null$"),
        (
            {"artifact": {"inputs": ("image.front", "image.side", "state", "seed")}},
            r"artifact\.inputs names \['image\.side', 'seed'\]; there are: image\.front, command\.words, "
            r"images, state, noise, prefix, delay$",
        ),
        (
            {"artifact": {"inputs": ("images",)}, "cameras": (FRONT, Camera(name="back", width=8, height=6))},
            r"artifact\.inputs names 'images', which needs cameras of one size, got \[\(8, 6\), \(8, 8\)\]$",
        ),
        (
            {"artifact": {"inputs": ("prefix",)}, "max_delay": 1},
            r"max_delay is 1, and of 'prefix' and 'delay' artifact\.inputs names \['prefix'\]$",
        ),
        (
            {"artifact": {"inputs": ("delay",)}, "max_delay": 1},
            r"max_delay is 1, and of 'prefix' and 'delay' artifact\.inputs names \['delay'\]$",
        ),
        (
            {"artifact": {"inputs": ("prefix", "delay")}},
            r"max_delay is 0, and of 'prefix' and 'delay' artifact\.inputs names \['prefix', 'delay'\]$",
        ),
    ],
)
def test_a_policy_contradicts_itself_nowhere(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=f"^{message}"):
        changed(**fields)


@pytest.mark.parametrize(
    "fields",
    [
        {"cameras": (FRONT, BACK), "artifact": {"inputs": ("images",)}},
        {"cameras": (FRONT, Camera(name="back", width=8, height=6)), "artifact": {"inputs": ("image.back",)}},
        {"noise": (1,)},
        {"history": 3},
        {"max_delay": 3, "artifact": {"inputs": ("prefix", "delay")}},
        {"tokenizer": None, "artifact": {"command": (), "inputs": ("images", "state", "noise")}},
    ],
)
def test_policies_of_many_kinds(fields: dict[str, Any]) -> None:
    made = changed(**fields)
    assert made.state_size == 0
    assert msgspec.json.decode(dumps(made), type=PolicySpec) == made


def test_only_continuous_actions_follow_a_delay() -> None:
    symbols = DiscreteSpace(vocabulary=("go", "stop"), horizon=4, control_hz=1.0)
    with pytest.raises(SpecError, match=r"^max_delay has no meaning for discrete actions$"):
        msgspec.structs.replace(spec(symbols), max_delay=1)


def test_what_an_action_moves_is_in_the_state() -> None:
    moving = Dimension(name="dx", unit="m", low=-1.0, high=1.0, meaning="delta", state="x")
    action = space(dimensions=(moving,), statistics=Statistics(), normalisation="identity")
    with pytest.raises(SpecError, match=r"^dx: state names 'x'; the policy's state has \(\)$"):
        spec(action)
    for name, good in {"x": True, "y": False}.items():
        state = Vector(
            dimensions=(msgspec.structs.replace(X, name=name),),
            normalisation="identity",
            statistics=Statistics(),
        )
        if good:
            made = msgspec.structs.replace(SMALL, action=action, state=state)
            assert made.state_size == 1
        else:
            with pytest.raises(SpecError, match=r"^dx: state names 'x'; the policy's state has \('y',\)$"):
                msgspec.structs.replace(SMALL, action=action, state=state)


@pytest.mark.parametrize(
    ("safety", "message"),
    [
        ({"mode": "hold"}, r"safety\.mode 'hold' needs a safety\.hold_action$"),
        ({"min_confidence": 0.5}, r"safety\.min_confidence needs a safety\.hold_action$"),
        ({"hold_action": "fly"}, "unknown action 'fly'; available: "),
    ],
)
def test_a_discrete_policy_names_what_it_holds(safety: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=f"^{message}"):
        spec(SYMBOLS, Safety(**safety))
    for mode in ("hold", "clamp"):
        assert spec(SYMBOLS, Safety(mode=mode, hold_action="stop")).safety.hold_action == "stop"


@pytest.mark.parametrize(("images", "history"), [("a.png", 1), (("a.png",), 1), (("a.png", "b.png"), 2)])
def test_an_example_has_a_picture_a_step(images: Any, history: int) -> None:
    example = Example(images={"front": images}, command="go", state=(), seed=0, actions=())
    assert changed(example=example, history=history).example == example
    with pytest.raises(SpecError, match=r"^example\.images of 'front' needs 3 files, got "):
        changed(example=example, history=3)


def test_a_saved_spec_is_text_for_people(tmp_path: Path) -> None:
    SMALL.save(tmp_path)

    text = (tmp_path / "policy.json").read_text()
    assert text.startswith('{\n  "name": "tiny",\n  "version": "1.0",\n')
    assert text.endswith("}\n")
    assert PolicySpec.load(tmp_path) == SMALL


def test_a_spec_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=rf"^policy\.json is missing in {tmp_path}$"):
        PolicySpec.load(tmp_path)


def test_noise_of_a_discrete_policy_of_format_1(tmp_path: Path) -> None:
    """As wide as its vocabulary."""
    plain = json.loads(FORMAT_1.read_text())
    plain["action"] = {
        "kind": "discrete",
        "vocabulary": ["go", "left", "stop"],
        "horizon": 2,
        "control_hz": 1.0,
    }
    plain["safety"] = {}
    plain["artifact"] |= {"stochastic": True, "outputs": ["logits", "attention"]}
    (tmp_path / "policy.json").write_text(json.dumps(plain))

    assert PolicySpec.load(tmp_path).noise == (2, 3)


def test_format_1_is_what_does_not_say_its_format(tmp_path: Path) -> None:
    plain = json.loads(FORMAT_1.read_text())
    del plain["format_version"]
    (tmp_path / "policy.json").write_text(json.dumps(plain))

    assert PolicySpec.load(tmp_path).format_version == 2
    plain["format_version"] = 3
    (tmp_path / "policy.json").write_text(json.dumps(plain))
    with pytest.raises(SpecError, match=r"^policy\.json: "):
        PolicySpec.load(tmp_path)
