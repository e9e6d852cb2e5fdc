"""Real-time chunking of imported flows: guidance as LeRobot computes it, and by the policy's gradient."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from golden.folders import SMOLVLM, TOKENIZER, read_pi, rebuilt, recorded
from golden.in_process import row, served
from torch import Tensor
from torch._inductor.package.package import load_package

from export.batch import Batch
from export.errors import ExportError
from export.flat import flattened
from export.foreign.pi0 import guidance
from export.package import package
from export.source import Source
from export.target import Target
from export.trace import trace
from vla_runtime.errors import RequestError
from vla_runtime.policy import Policy

FLOWS: dict[str, dict[str, Any]] = {
    "pi0": {"tokenizer": TOKENIZER},
    "pi05": {"tokenizer": TOKENIZER},
    "smolvla": {"tokenizer": SMOLVLM / "tokenizer.json", "vlm": SMOLVLM / "config.json"},
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {name: rebuilt(name, tmp_path_factory.mktemp("golden")) for name in FLOWS}


def read(name: str, folders: dict[str, Path], **facts: Any) -> Source:
    told: dict[str, Any] = FLOWS[name] | {"margin": 3.0} | facts
    return read_pi(folders[name], **told)


def rows(name: str) -> tuple[list[dict[str, object]], list[dict[str, object]]]:
    """Return the golden requests that came after another: plain, and with what is left of its answer."""
    golden = recorded(name)
    later = golden["requests"][1:]
    plain = [row(golden, request) for request in later]
    left = [{"previous": request["previous"], "delay": golden["delay"]} for request in later]
    return plain, [one | more for one, more in zip(plain, left, strict=True)]


def answers(policy: Policy, batch: list[dict[str, object]]) -> np.ndarray:
    """Return the actions float32 [B, T, A]."""
    found = policy.infer(batch)
    for answer in found:
        assert not isinstance(answer, RequestError), answer.message
    return np.array([answer.chunk.actions for answer in found if not isinstance(answer, RequestError)])


@pytest.mark.parametrize("name", FLOWS)
def test_identity_guidance_is_lerobots(folders: dict[str, Path], name: str) -> None:
    golden, (plain, guided) = recorded(name), rows(name)
    policy = served(read(name, folders, guidance="identity", max_delay=3))
    truth, previous = (np.array([r[key] for r in golden["requests"][1:]]) for key in ("guided", "previous"))

    found = answers(policy, guided)

    delay = golden["delay"]
    assert (np.abs(found - truth) / golden["range"])[:, delay:].max() <= 1e-5
    assert np.array_equal(found[:, :delay], previous[:, :delay].astype(np.float32))
    unguided = answers(policy, plain)
    assert (np.abs(found - unguided) / golden["range"])[:, delay:].max() > 0.01


@pytest.mark.parametrize("kind", ["identity", "vjp"])
def test_rows_without_given_actions_are_untouched_bit_for_bit(folders: dict[str, Path], kind: str) -> None:
    plain, guided = rows("pi0")
    policy = served(read("pi0", folders, guidance=kind, max_delay=3))

    alone = answers(policy, plain)
    mixed = answers(policy, [plain[0], guided[1], plain[2]])

    assert np.array_equal(mixed[[0, 2]], alone[[0, 2]])
    assert not np.array_equal(mixed[1], alone[1])


def test_without_given_actions_the_answer_is_the_unguided_policys(folders: dict[str, Path]) -> None:
    plain, _ = rows("smolvla")
    expected = answers(served(read("smolvla", folders)), plain)

    for kind in ("identity", "vjp"):
        found = answers(served(read("smolvla", folders, guidance=kind, max_delay=1)), plain)
        assert np.abs(found - expected).max() <= 1e-4, kind


class Bent(guidance.Guided):
    """A flow of a few numbers whose velocity mixes all actions of a row."""

    def __init__(self, kind: guidance.Kind) -> None:
        super().__init__()
        self.guidance = kind
        self.mixing = torch.randn(6, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def velocity(self, actions: Tensor, time: float) -> Tensor:
        return torch.tanh(actions.flatten(1) @ self.mixing + time).unflatten(1, (3, 2))

    def flowed(self, noise: Tensor, times: list[float], *given: Tensor) -> Tensor:
        return self._flowed(self.velocity, noise, times, given)


def test_vjp_guidance_follows_the_gradient_of_the_chunk_that_comes_out() -> None:
    model, random = Bent("vjp"), torch.Generator().manual_seed(1)
    noise, prefix = torch.randn(2, 2, 3, 2, generator=random, dtype=torch.float64)
    delay, times = torch.tensor([2, 1]), [1.0, 0.75, 0.5, 0.25]

    def misses(actions: Tensor, time: float, row: int) -> Tensor:
        """Half the squared distance from the given actions: its slope is the correction, but for the sign."""
        clean = (actions - time * model.velocity(actions, time))[row, : delay[row]]
        return (clean - prefix[row, : delay[row]]).square().sum() / 2

    expected = noise
    for time in times:
        slopes = torch.zeros_like(expected)
        for place in np.ndindex(*expected.shape):  # by central differences
            step = torch.zeros_like(expected)
            step[place] = 1e-6
            ends = [misses(expected + sign * step, time, place[0]) for sign in (1, -1)]
            slopes[place] = (ends[0] - ends[1]) / 2e-6
        change = model.velocity(expected, time) + guidance.weight(time) * slopes
        expected = expected - change / len(times)

    found = model.flowed(noise, times, prefix, delay)

    free = torch.arange(3) >= delay[:, None]
    assert torch.allclose(found[free], expected[free], atol=1e-5)
    assert torch.equal(found[~free], prefix[~free])
    assert (Bent("identity").flowed(noise, times, prefix, delay)[free] - found[free]).abs().max() > 0.05


def test_corrections_count_most_at_the_noise() -> None:
    assert guidance.weight(1.0) == guidance.MOST
    assert guidance.weight(0.5) == pytest.approx(2.0)
    assert guidance.weight(0.25) == pytest.approx((0.25 / 0.75) * (0.25**2 + 0.75**2) / 0.25**2)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "no delay": ({"guidance": "identity"}, r"--guidance identity needs --max-delay, .*: 1 to 4, got None$"),
    "a whole chunk": (
        {"guidance": "vjp", "max_delay": 5},
        r"--guidance vjp needs --max-delay, .*: 1 to 4, got 5$",
    ),
    "no guidance": ({"max_delay": 2}, r"--max-delay is of --guidance identity or vjp, which was not given$"),
}


@pytest.mark.parametrize("fault", REFUSED)
def test_what_guidance_needs_is_asked_for(folders: dict[str, Path], fault: str) -> None:
    facts, message = REFUSED[fault]

    for name in FLOWS:
        with pytest.raises(ExportError, match=message):
            read(name, folders, **facts)


def test_no_other_policy_is_guided(tmp_path: Path) -> None:
    with pytest.raises(
        ExportError, match=r"--guidance is for flows, which are: pi0, pi05, smolvla; this is .*'act'$"
    ):
        read_pi(rebuilt("act_0_6", tmp_path), None, guidance="identity", max_delay=2)


def test_no_trace_takes_gradients(folders: dict[str, Path], tmp_path: Path) -> None:
    module, layout = flattened(read("pi0", folders, guidance="vjp", max_delay=2))

    with pytest.raises(ExportError, match=r"takes gradients, .*: give --format pt2 or eager$"):
        trace(module, layout, tmp_path / "policy.ts", Target(largest_batch=4))


@pytest.mark.slow
def test_a_package_takes_gradients(folders: dict[str, Path], tmp_path: Path) -> None:
    module, layout = flattened(read("smolvla", folders, guidance="vjp", max_delay=3, denoising_steps=2))
    target = Target(largest_batch=4, format="pt2")

    package(module, layout, tmp_path / "policy.pt2", target)

    act: Any = load_package(str(tmp_path / "policy.pt2"), "act")
    for count in (1, 3, 4):
        inputs = Batch.random(layout, count, count, "cpu").calls(module)["act"]
        expected = module.act(*inputs)["actions"]
        assert (act(*inputs)["actions"] - expected).abs().max() <= 1e-4
