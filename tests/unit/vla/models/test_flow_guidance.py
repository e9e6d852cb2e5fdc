"""A flow that was not trained for delays is drawn towards the actions that it is given."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from making import write_checkpoint
from test_heads import SIZES
from test_models import commands, observations

from export.errors import ExportError
from export.foreign.facts import Facts
from export.foreign.pi0 import guidance as foreign
from export.native import make
from vla.models import build, module_of
from vla.models.parts.guidance import guided, weight

KINDS = ("identity", "vjp")


def flow(**values: Any) -> Any:
    torch.manual_seed(0)
    return build("flow", asdict(module_of("flow").Config.tiny()) | values, SIZES).eval()


@pytest.mark.parametrize("kind", KINDS)
def test_given_actions_draw_their_own_row_alone(kind: str) -> None:
    plain, drawn = flow(), flow(guidance=kind, max_delay=3).requires_grad_(requires_grad=False)
    drawn.load_state_dict(plain.state_dict())
    with torch.inference_mode():
        images, state, noise = observations(plain, 3)
        command = plain.encode_command(*commands(3))
        prefix, delay = torch.full_like(noise, 0.4), torch.tensor([0, 2, 3])

        free = plain.act(images, *command, state, noise)["actions"]
        found = drawn.act(images, *command, state, noise, prefix, delay)["actions"]

    assert torch.equal(found[0], free[0])
    for row, given in ((1, 2), (2, 3)):
        assert torch.equal(found[row, :given], prefix[row, :given])
        assert (found[row, given:] - free[row, given:]).abs().max() > 1e-3


def test_a_correction_is_carried_back_through_the_velocity() -> None:
    """Of a linear one, v = A x, the chunk it leads to is (1 + (1 - t) A) x; the transpose carries back."""
    random = torch.Generator().manual_seed(3)
    matrix = torch.randn(4, 4, generator=random)
    chunk, prefix = (torch.randn(1, 4, 1, generator=random) for _ in range(2))
    known, time = torch.tensor([[True, True, False, False]]), 0.25

    found = guided("vjp", lambda x: matrix @ x, chunk, time, prefix=prefix, known=known)

    jacobian = torch.eye(4) + 0.75 * matrix
    error = torch.where(known.unsqueeze(-1), prefix - jacobian @ chunk, 0.0)
    assert torch.allclose(found, matrix @ chunk + weight(time) * jacobian.T @ error, atol=1e-5)


def test_it_weighs_as_an_imported_flow_does_whose_time_runs_the_other_way() -> None:
    assert all(weight(step / 7) == pytest.approx(foreign.weight(1 - step / 7)) for step in range(7))


def test_guidance_needs_a_delay() -> None:
    with pytest.raises(ValueError, match=r"^guidance 'vjp' needs a max_delay of 1 or more$"):
        flow(guidance="vjp")


def test_a_checkpoint_is_guided_where_it_is_exported(tmp_path: Path) -> None:
    checkpoint = write_checkpoint(tmp_path / "flow", "flow")
    told = Facts(guidance="identity", max_delay=2)

    source = make(checkpoint, told)

    assert source.max_delay == 2
    assert source.eager
    assert source.eager.arguments["config"]["guidance"] == "identity"
    assert make(checkpoint).max_delay == 0
    with pytest.raises(ExportError, match=r"needs --max-delay, the most steps .*: 1 to 3, got None$"):
        make(checkpoint, Facts(guidance="identity"))


@pytest.mark.parametrize(
    ("architecture", "values", "why"),
    [("flow", {"max_delay": 1}, "was trained for a delay"), ("command_attention", {}, "is no flow")],
)
def test_what_is_not_guided_is_refused(
    tmp_path: Path, architecture: str, values: dict[str, int], why: str
) -> None:
    checkpoint = write_checkpoint(tmp_path / "it", architecture, **values)

    with pytest.raises(ExportError, match=rf"^--guidance vjp is for a flow .* without a delay: this {why}$"):
        make(checkpoint, Facts(guidance="vjp", max_delay=2))
