"""Golden truth of openpi's JAX checkpoints: what the real library saves, and answers from it.

`make golden-openpi` runs it after make_openpi.py, in the same environment. The policies and their weights
are those of two golden folders in PyTorch, laid out as openpi's JAX code has them; orbax writes them, and
they are kept as it wrote them. All else, from the request to the robot's actions, is openpi's own code.
"""

import json
import shutil
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import make_openpi as torch_side
import numpy as np
import orbax.checkpoint as ocp
from drawn import weight
from flax import nnx, traverse_util
from openpi.models import gemma, model, siglip

HERE = Path(__file__).parent
DEPTH, HEADS, HEAD, TOWER_HEADS = 2, 4, 16, 16
# Case -> whether its arrays end in `value`, as openpi's training saves them; the published ones do not.
CASES = {"pi0_libero": True, "pi05_droid": False}


class Layout:
    """The weights of a golden folder in PyTorch, as JAX's arrays by their path."""

    def __init__(self, shapes: dict[str, list[int]]) -> None:
        self._shapes, self.arrays = shapes, dict[str, np.ndarray]()

    def drawn(self, key: str) -> np.ndarray:
        """Return a weight of the PyTorch folder."""
        return weight(key, tuple(self._shapes[key]))

    def linear(self, path: str, key: str) -> None:
        """Lay out a linear layer."""
        self.arrays[f"{path}/kernel"] = self.drawn(f"{key}.weight").T
        self.arrays[f"{path}/bias"] = self.drawn(f"{key}.bias")

    def layers(self, path: str, key: str, layer: Any) -> None:
        """Stack a weight of all layers."""
        self.arrays[path] = np.stack([layer(self.drawn(key.format(place))) for place in range(DEPTH)])

    def tower(self, torch: str) -> None:
        """Lay out the picture tower."""
        img = "PaliGemma/img"
        self.arrays[f"{img}/embedding/kernel"] = self.drawn(
            f"{torch}embeddings.patch_embedding.weight"
        ).transpose(2, 3, 1, 0)
        self.arrays[f"{img}/embedding/bias"] = self.drawn(f"{torch}embeddings.patch_embedding.bias")
        self.arrays[f"{img}/pos_embedding"] = self.drawn(f"{torch}embeddings.position_embedding.weight")[None]
        block, layer = f"{img}/Transformer/encoderblock", f"{torch}encoder.layers.{{}}."
        for place in (0, 1):
            self._norm(f"{block}/LayerNorm_{place}", f"{layer}layer_norm{place + 1}")
            dense, fc = f"{block}/MlpBlock_0/Dense_{place}", f"{layer}mlp.fc{place + 1}"
            self.layers(f"{dense}/kernel", f"{fc}.weight", np.transpose)
            self.layers(f"{dense}/bias", f"{fc}.bias", np.array)
        attention = f"{block}/MultiHeadDotProductAttention_0"
        for name in ("query", "key", "value"):
            own = f"{layer}self_attn.{name[0]}_proj"
            self.layers(
                f"{attention}/{name}/kernel", f"{own}.weight", lambda w: w.T.reshape(len(w), TOWER_HEADS, -1)
            )
            self.layers(f"{attention}/{name}/bias", f"{own}.bias", lambda b: b.reshape(TOWER_HEADS, -1))
        out = f"{layer}self_attn.out_proj"
        self.layers(
            f"{attention}/out/kernel", f"{out}.weight", lambda w: w.T.reshape(TOWER_HEADS, -1, len(w))
        )
        self.layers(f"{attention}/out/bias", f"{out}.bias", np.array)
        self.arrays[f"{img}/Transformer/encoder_norm/scale"] = self.drawn(f"{torch}post_layernorm.weight")
        self.arrays[f"{img}/Transformer/encoder_norm/bias"] = self.drawn(f"{torch}post_layernorm.bias")

    def gemma(self, torch: str, suffix: str, *, adaptive: bool) -> None:
        """Lay out the layers of a Gemma."""
        llm, layer = "PaliGemma/llm/layers", f"{torch}layers.{{}}."
        attn = f"{llm}/attn"
        self.layers(f"{attn}/q_einsum{suffix}/w", f"{layer}self_attn.q_proj.weight", by_head)
        keys, values = (self._heads(f"{layer}self_attn.{name}_proj.weight") for name in "kv")
        self.arrays[f"{attn}/kv_einsum{suffix}/w"] = np.stack([keys, values], 1)
        self.layers(
            f"{attn}/attn_vec_einsum{suffix}/w",
            f"{layer}self_attn.o_proj.weight",
            lambda w: w.T.reshape(HEADS, HEAD, -1),
        )
        gate, up = (
            np.stack([self.drawn(f"{layer}mlp.{name}_proj.weight".format(i)).T for i in range(DEPTH)])
            for name in ("gate", "up")
        )
        self.arrays[f"{llm}/mlp{suffix}/gating_einsum"] = np.stack([gate, up], 1)
        self.layers(f"{llm}/mlp{suffix}/linear", f"{layer}mlp.down_proj.weight", np.transpose)
        norms = {"pre_attention_norm": "input_layernorm", "pre_ffw_norm": "post_attention_layernorm"}
        for name, key in norms.items():
            if adaptive:
                self.layers(
                    f"{llm}/{name}{suffix}/Dense_0/kernel", f"{layer}{key}.dense.weight", np.transpose
                )
                self.layers(f"{llm}/{name}{suffix}/Dense_0/bias", f"{layer}{key}.dense.bias", np.array)
            else:
                self.layers(f"{llm}/{name}{suffix}/scale", f"{layer}{key}.weight", np.array)
        final = f"PaliGemma/llm/final_norm{suffix}"
        if adaptive:
            self.linear(f"{final}/Dense_0", f"{torch}norm.dense")
        else:
            self.arrays[f"{final}/scale"] = self.drawn(f"{torch}norm.weight")

    def _norm(self, path: str, key: str) -> None:
        self.layers(f"{path}/scale", f"{key}.weight", np.array)
        self.layers(f"{path}/bias", f"{key}.bias", np.array)

    def _heads(self, key: str) -> np.ndarray:
        return np.stack([by_head(self.drawn(key.format(place))) for place in range(DEPTH)])


def by_head(linear: np.ndarray) -> np.ndarray:
    """Return [heads * head, width] as [heads, width, head]."""
    return linear.reshape(-1, HEAD, linear.shape[-1]).transpose(0, 2, 1)


def laid_out(shapes: dict[str, list[int]]) -> dict[str, np.ndarray]:
    """Return the arrays of a policy by path."""
    layout, pi05 = Layout(shapes), "time_mlp_in.weight" in shapes
    both = "paligemma_with_expert."
    paligemma = f"{both}paligemma.model."
    layout.tower(f"{paligemma}vision_tower.vision_model.")
    layout.linear("PaliGemma/img/head", f"{paligemma}multi_modal_projector.linear")
    layout.arrays["PaliGemma/llm/embedder/input_embedding"] = layout.drawn(f"{both}paligemma.lm_head.weight")
    layout.gemma(f"{paligemma}language_model.", "", adaptive=False)
    layout.gemma(f"{both}gemma_expert.model.", "_1", adaptive=pi05)
    own = (
        ("time_mlp_in", "time_mlp_out")
        if pi05
        else ("state_proj", "action_time_mlp_in", "action_time_mlp_out")
    )
    for name in ("action_in_proj", "action_out_proj", *own):
        layout.linear(name, name)
    return layout.arrays


def smaller() -> None:
    """Let openpi's JAX code build its policies as small as those in PyTorch, and read them in float32."""
    torch_side.smaller()
    words = json.loads(torch_side.TOKENIZER.read_text())["added_tokens"][-1]["id"]
    sizes = {"width": 64, "depth": DEPTH, "mlp_dim": 96, "num_heads": TOWER_HEADS, "patch_size": (14, 14)}
    gemma.PALIGEMMA_VOCAB_SIZE = words
    siglip.decode_variant = lambda _variant: sizes
    restored = model.restore_params
    model.restore_params = lambda path, dtype=None: restored(path, dtype=dtype and jnp.float32)


def save(case: torch_side.Case, folder: Path, *, as_trained: bool) -> None:
    """Write a checkpoint as openpi does, and the names file of the golden folder in PyTorch."""
    beside = HERE / case.name
    arrays = laid_out(json.loads((beside / "weights.json").read_text())["shapes"])
    tree = traverse_util.unflatten_dict({tuple(path.split("/")): value for path, value in arrays.items()})
    policy = torch_side.configuration(case).model.load(
        jax.tree.map(jnp.asarray, tree), remove_extra_params=False
    )
    state = nnx.state(policy)
    params = state if as_trained else state.to_pure_dict()
    with ocp.PyTreeCheckpointer() as checkpointer:
        checkpointer.save(folder / "params", {"params": params})
    for name in ("assets", "meta"):
        shutil.copytree(beside / name, folder / name)


def write(case: torch_side.Case, *, as_trained: bool) -> Path:
    """Make one checkpoint's golden folder anew."""
    output = HERE / case.name.replace("openpi_", "openpi_jax_")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / case.name
        folder.mkdir()
        save(case, folder, as_trained=as_trained)
        found = torch_side.answers(case, folder)
        shutil.rmtree(output, ignore_errors=True)
        shutil.copytree(folder, output, copy_function=shutil.copyfile)
    beside = json.loads((HERE / case.name / "requests.json").read_text())
    packages = ("jax", "flax", "orbax-checkpoint", "numpy")
    recorded = beside | {"made_with": {name: version(name) for name in packages}, "requests": found}
    (output / "requests.json").write_text(json.dumps(recorded) + "\n")
    pairs = zip(found, beside["requests"], strict=True)
    apart = [np.abs(np.subtract(a["actions"], b["actions"])) / beside["range"] for a, b in pairs]
    print(f"{output} is made anew; from openpi's answers in PyTorch it is {np.max(apart):.1e} of the range")
    return output


if __name__ == "__main__":
    smaller()
    for case in torch_side.CASES:
        if case.config in CASES and (not sys.argv[1:] or case.name in sys.argv[1:]):
            write(case, as_trained=CASES[case.config])
