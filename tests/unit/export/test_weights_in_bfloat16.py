"""Weights that are read in bfloat16: of what is multiplied, without a float32 copy of the whole."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional

from export.foreign.weights import Table, load_weights
from export.lower import Exact, Lowered

TABLE = Table((("", ""),))
LAYERS, WIDTH = 16, 2048


class Mixed(nn.Module):
    """A layer of every kind that an imported policy has."""

    def __init__(self) -> None:
        super().__init__()
        self.picture = nn.Conv2d(3, 8, 2)
        self.words = nn.Embedding(5, 8)
        self.norm = nn.LayerNorm(8)
        self.out = nn.Linear(8, 4)

    def encode_command(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        return (self.words(input_ids) * 3.3 * attention_mask[..., None],)

    def act(self, pictures: torch.Tensor, words: torch.Tensor) -> dict[str, torch.Tensor]:
        seen = self.picture(pictures).flatten(2).mean(2)
        return {"actions": self.out(self.norm(functional.gelu(seen + words.mean(1))))}


def mixed(folder: Path, precision: str = "bfloat16") -> Mixed:
    torch.manual_seed(0)
    save_file(Mixed().state_dict(), folder / "model.safetensors")
    loaded = load_weights(folder, TABLE, Mixed, precision)  # pyright: ignore[reportArgumentType]
    assert isinstance(loaded.model, Mixed)
    return loaded.model


def test_what_is_multiplied_is_bfloat16_and_the_rest_float32(tmp_path: Path) -> None:
    found = {name: value.dtype for name, value in mixed(tmp_path).named_parameters()}

    wide = {name for name, kind in found.items() if kind == torch.float32}
    assert wide == {"norm.weight", "norm.bias"}
    assert {kind for name, kind in found.items() if name not in wide} == {torch.bfloat16}


@pytest.mark.parametrize("precision", ["float32", "int8"])
def test_any_other_precision_is_read_as_float32(tmp_path: Path, precision: str) -> None:
    assert {value.dtype for value in mixed(tmp_path, precision).parameters()} == {torch.float32}


def test_it_computes_exactly_what_its_rounded_weights_say(tmp_path: Path) -> None:
    model, ids, mask = mixed(tmp_path), torch.tensor([[0, 4]]), torch.ones(1, 2)
    pictures = torch.randn(1, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    rounded = Mixed()
    rounded.load_state_dict({name: value.float() for name, value in model.state_dict().items()})

    with torch.inference_mode():
        (words,) = rounded.encode_command(ids, mask)
        expected = rounded.act(pictures, words)["actions"]
        with Exact():
            (wide,) = model.encode_command(ids, mask)
            exact = model.act(pictures, wide)["actions"]
        lowered = Lowered(model)
        (narrow,) = lowered.encode_command(ids, mask)
        served = lowered.act(pictures, narrow)["actions"]

    assert torch.equal(wide, words)
    assert torch.equal(exact, expected)
    assert 1e-5 < (served - expected).abs().max() < 0.02


READ = f"""
import re, sys
from pathlib import Path

import torch
from torch import nn

from export.foreign.weights import Table, load_weights

def peak():
    # Not getrusage, which counts what the parent had before this program began.
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024

build = lambda: nn.Sequential(*[nn.Linear({WIDTH}, {WIDTH}, bias=False) for _ in range({LAYERS})])
before = peak()
model = load_weights(Path(sys.argv[1]), Table((("", ""),)), build, sys.argv[2]).model
assert sum(value.numel() for value in model.parameters()) == {LAYERS * WIDTH**2}
print(peak() - before)
"""


def test_reading_takes_the_narrow_weights_and_a_few_layers_more(tmp_path: Path) -> None:
    weights = {f"{place}.weight": torch.full((WIDTH, WIDTH), 0.5) for place in range(LAYERS)}
    save_file(weights, tmp_path / "model.safetensors")

    def peak(precision: str) -> int:
        command = [sys.executable, "-c", READ, str(tmp_path), precision]
        return int(subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout)

    narrow = 2 * LAYERS * WIDTH**2
    layer = 4 * WIDTH**2
    assert narrow <= peak("bfloat16") <= narrow + 4 * layer < 2 * narrow <= peak("float32")
