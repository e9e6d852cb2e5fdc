"""openpi's JAX weights of a pi0 or pi0.5 under the names and in the shapes of its PyTorch port.

JAX stacks the layers of a tower on the first axis, keeps linear layers as [in, out], and has an axis for the
heads of an attention.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from export.foreign.orbax import Arrays
from export.foreign.paligemma import EMBEDDING, EXPERT, LANGUAGE, OF_PI0, OF_PI05, OUTER, PALIGEMMA, TOWER
from export.foreign.weights import Shapes, check

PARAMS = "params"
IMG, LLM = "PaliGemma/img/", "PaliGemma/llm/"
BLOCK = f"{IMG}Transformer/encoderblock/"


@dataclass(frozen=True)
class Part:
    """What one weight of the PyTorch port is of one of JAX's arrays."""

    # The weight's key, with `{}` for the number of its layer, which is the array's first axis then.
    key: str
    # The array's shape, of one layer where it has several, as letters to read; their count is checked.
    axes: str
    make: Callable[[Tensor], Tensor]

    def weights(self, array: Tensor) -> Iterator[tuple[str, Tensor]]:
        """Yield keys and weights of one array; those of a layer share its memory."""
        if "{}" not in self.key:
            yield self.key, self.make(array)
            return
        for place, layer in enumerate(array):
            yield self.key.format(place), self.make(layer)

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Whether an array has the axes."""
        layer = shape[1:] if "{}" in self.key else shape
        pairs = zip(self.axes, layer, strict=False)
        return len(layer) == len(self.axes) and all(not a.isdigit() or int(a) == size for a, size in pairs)


class JaxWeights:
    """A `weights.Weights` below a folder `params`, checked to have each array of the policy, and no other.

    Raises:
        ExportError: it can't be read, or an array is unknown, missing, or of another shape.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / PARAMS
        self._arrays = Arrays(self.path)
        found = self._arrays.shapes
        pi05 = any(path.startswith(f"{OF_PI05[0]}/") for path in found)
        self.described_by = f"a {'pi0.5' if pi05 else 'pi0'} of openpi's"
        self._table = table(pi05=pi05)
        axes = (
            f"{path} {list(found[path])}"
            for path in found.keys() & self._table.keys()
            if not self._fits(path)
        )
        check(
            self,
            {
                "unknown keys": sorted(found.keys() - self._table.keys()),
                "missing keys": sorted(self._table.keys() - found.keys()),
                "other shapes": sorted(axes),
            },
        )
        # The array of every weight, and the weight without its numbers.
        self._laid_out = {
            key: (path, weight)
            for path, parts in self._table.items()
            for part in parts
            for key, weight in part.weights(torch.empty(found[path], device="meta"))
        }
        self.shapes: Shapes = {key: tuple(weight.shape) for key, (_, weight) in self._laid_out.items()}

    def tensors(self, keys: Iterable[str]) -> Iterator[tuple[str, Tensor]]:
        """See `weights.Weights`; one array, which may have all layers, is in memory at a time."""
        wanted = set(keys)
        for path, parts in self._table.items():
            array = self._arrays.read(path)
            for part in parts:
                for key, weight in part.weights(array):
                    if key in wanted:
                        yield key, weight.clone(memory_format=torch.contiguous_format)

    def shown(self, key: str) -> str:
        """See `weights.Weights`."""
        return f"{self._laid_out[key][0]}, as {key}" if key in self._laid_out else key

    def _fits(self, path: str) -> bool:
        return all(part.fits(self._arrays.shapes[path]) for part in self._table[path])


def as_is(weight: Tensor) -> Tensor:
    """Norms, biases and tables are the same in both."""
    return weight


def linear(kernel: Tensor) -> Tensor:
    """[in, out] -> [out, in]."""
    return kernel.T


def from_heads(kernel: Tensor) -> Tensor:
    """[heads, head, out] -> [out, heads * head]."""
    return kernel.flatten(0, 1).T


def by_head(einsum: Tensor) -> Tensor:
    """[heads, in, head] -> [heads * head, in]."""
    return einsum.transpose(1, 2).flatten(0, 1)


def _dense(jax: str, torch: str) -> dict[str, tuple[Part, ...]]:
    return {
        f"{jax}/kernel": (Part(f"{torch}.weight", "io", linear),),
        f"{jax}/bias": (Part(f"{torch}.bias", "o", as_is),),
    }


def _layer_norm(jax: str, torch: str) -> dict[str, tuple[Part, ...]]:
    return {
        f"{jax}/scale": (Part(f"{torch}.weight", "w", as_is),),
        f"{jax}/bias": (Part(f"{torch}.bias", "w", as_is),),
    }


def _tower() -> dict[str, tuple[Part, ...]]:
    inner, attention = f"{TOWER}vision_model.", f"{BLOCK}MultiHeadDotProductAttention_0/"
    embeddings, layer = f"{inner}embeddings.", f"{inner}encoder.layers.{{}}."
    found = {
        f"{IMG}embedding/kernel": (
            Part(f"{embeddings}patch_embedding.weight", "hwio", lambda kernel: kernel.permute(3, 2, 0, 1)),
        ),
        f"{IMG}embedding/bias": (Part(f"{embeddings}patch_embedding.bias", "o", as_is),),
        f"{IMG}pos_embedding": (
            Part(f"{embeddings}position_embedding.weight", "1pw", lambda table: table.flatten(0, 1)),
        ),
        f"{attention}out/kernel": (Part(f"{layer}self_attn.out_proj.weight", "nho", from_heads),),
        f"{attention}out/bias": (Part(f"{layer}self_attn.out_proj.bias", "o", as_is),),
    }
    for name in ("query", "key", "value"):
        own = f"{layer}self_attn.{name[0]}_proj"
        found[f"{attention}{name}/kernel"] = (
            Part(f"{own}.weight", "inh", lambda kernel: kernel.flatten(1).T),
        )
        found[f"{attention}{name}/bias"] = (Part(f"{own}.bias", "nh", torch.flatten),)
    for place in (0, 1):
        found |= _layer_norm(f"{BLOCK}LayerNorm_{place}", f"{layer}layer_norm{place + 1}")
        found |= _dense(f"{BLOCK}MlpBlock_0/Dense_{place}", f"{layer}mlp.fc{place + 1}")
    found |= _layer_norm(f"{IMG}Transformer/encoder_norm", f"{inner}post_layernorm")
    return found | _dense(f"{IMG}head", f"{PALIGEMMA}model.multi_modal_projector.linear")


def _gemma(torch: str, suffix: str, *, adaptive: bool) -> dict[str, tuple[Part, ...]]:
    layer, attn = f"{torch}layers.{{}}.", f"{LLM}layers/attn/"
    mlp, attention = f"{layer}mlp.", f"{layer}self_attn."
    found = {
        f"{attn}q_einsum{suffix}/w": (Part(f"{attention}q_proj.weight", "nih", by_head),),
        f"{attn}kv_einsum{suffix}/w": (
            Part(f"{attention}k_proj.weight", "2nih", lambda both: by_head(both[0])),
            Part(f"{attention}v_proj.weight", "2nih", lambda both: by_head(both[1])),
        ),
        f"{attn}attn_vec_einsum{suffix}/w": (Part(f"{attention}o_proj.weight", "nho", from_heads),),
        f"{LLM}layers/mlp{suffix}/gating_einsum": (
            Part(f"{mlp}gate_proj.weight", "2io", lambda both: both[0].T),
            Part(f"{mlp}up_proj.weight", "2io", lambda both: both[1].T),
        ),
        f"{LLM}layers/mlp{suffix}/linear": (Part(f"{mlp}down_proj.weight", "io", linear),),
    }
    norms = {
        f"{LLM}layers/pre_attention_norm{suffix}": f"{layer}input_layernorm",
        f"{LLM}layers/pre_ffw_norm{suffix}": f"{layer}post_attention_layernorm",
        f"{LLM}final_norm{suffix}": f"{torch}norm",
    }
    for jax, own in norms.items():
        scale = {f"{jax}/scale": (Part(f"{own}.weight", "w", as_is),)}
        found |= _dense(f"{jax}/Dense_0", f"{own}.dense") if adaptive else scale
    return found


def table(*, pi05: bool) -> dict[str, tuple[Part, ...]]:
    """Return what becomes of each of the arrays of a pi0 or pi0.5, by path; each has its place."""
    found = _tower() | {f"{LLM}embedder/input_embedding": (Part(EMBEDDING, "vw", as_is),)}
    found |= _gemma(LANGUAGE, "", adaptive=False) | _gemma(f"{EXPERT}model.", "_1", adaptive=pi05)
    for name in (*OUTER, *(OF_PI05 if pi05 else OF_PI0)):
        found |= _dense(name, name)
    return found
