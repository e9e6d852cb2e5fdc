"""How often a policy that chooses, among symbols or bins, chooses right on frames that it has not seen."""

import torch
from torch import Tensor

from vla.models import AnyModel, Batch
from vla.training.validation import answered, moved
from vla_runtime.actions import encode_bins


@torch.inference_mode()
def choices(model: AnyModel, batch: Batch, device: str) -> dict[str, float]:
    """Return shares of right choices: the model's, and of always choosing what is most frequent there.

    There means at each place of a chunk and, of bins, in each dimension; the most frequent choice is that of
    this very batch, so that no guessing without looking does better. Empty for a policy that does not choose.
    """
    model, batch = model.to(device).eval(), moved(batch, device)
    bins = getattr(model.config, "bins", None)
    if batch.symbols is not None:
        logits = answered(model, batch, batch.actions[:, :0, :0], "logits")
        chosen, wanted = logits.argmax(-1), batch.symbols
    elif bins is not None:
        actions = answered(model, batch, batch.actions[:, :0, :0], "actions")
        chosen, wanted = encode_bins(actions, bins).flatten(1), encode_bins(batch.actions, bins).flatten(1)
    else:
        return {}
    usual = wanted.mode(0).values.expand_as(wanted)
    return {"right": _share(chosen, wanted), "guessed": _share(usual, wanted)}


def _share(chosen: Tensor, wanted: Tensor) -> float:
    return float((chosen == wanted).float().mean())
