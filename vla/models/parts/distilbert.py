"""DistilBERT as transformers has it, as a text encoder, and the sizes of the policies that read by it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Self

from torch import Tensor, nn
from transformers import DistilBertConfig, DistilBertModel

from vla.models import Sizes
from vla.models.parts.policy import QueryConfig
from vla.models.parts.published_files import load_published
from vla.models.parts.text import AttentionPooling

POSITIONS = "embeddings.position_embeddings.weight"


class DistilBert(nn.Module):
    """transformers' DistilBERT, fresh or from a folder, its tokens pooled.

    After Sanh et al. 2019, "DistilBERT, a distilled version of BERT". Its first token, which a pretrained one
    has learned to use as a summary, means nothing when the weights are fresh: the tokens are pooled by
    learned scores instead.
    """

    def __init__(
        self, vocabulary: int, length: int, width: int, *, layers: int, heads: int, mlp_width: int
    ) -> None:
        """Make the encoder of commands of at most `length` tokens."""
        super().__init__()
        config = DistilBertConfig(
            vocab_size=vocabulary,
            max_position_embeddings=length,
            dim=width,
            n_layers=layers,
            n_heads=heads,
            hidden_dim=mlp_width,
            dropout=0.0,
            attention_dropout=0.0,
            pad_token_id=None,
        )
        self.bert = DistilBertModel(config)
        nn.init.zeros_(self.bert.embeddings.word_embeddings.weight)
        self.pooling = AttentionPooling(width)

    def fill(self, folder: Path) -> None:
        """Take the weights of a local folder, and as many of its positions as commands have.

        Raises:
            ValueError: it is no DistilBERT, or one of another size or vocabulary.
            OSError: the folder is missing or holds no model.
        """
        found = load_published(DistilBertModel, folder)
        weights, config = found.state_dict(), self.bert.config
        if found.config.activation != config.activation:
            raise ValueError(f"{folder} has activation {found.config.activation}, not {config.activation}")
        positions = weights[POSITIONS][: config.max_position_embeddings]
        try:
            self.bert.load_state_dict(weights | {POSITIONS: positions})
        except RuntimeError as error:
            raise ValueError(f"{folder} does not fit a DistilBERT of these sizes: {error}") from error

    def recompute(self) -> None:
        """Recompute activations in training instead of keeping them."""
        # Its name before transformers 5.20.
        bert = self.bert
        getattr(bert, "activation_checkpointing_enable", bert.gradient_checkpointing_enable)()

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Encode int64 [N, L] to float32 [N, D].

        The mask is given in its final form: transformers makes it from a mask [N, L] by branches that depend
        on its values, which a trace would freeze.
        """
        mask = attention_mask.bool()
        attended = mask[:, None, None].expand(-1, 1, input_ids.shape[1], -1)
        tokens = self.bert(input_ids=input_ids, attention_mask=attended).last_hidden_state
        return self.pooling(tokens, mask)[0]


@dataclass(frozen=True)
class DistilBertPolicyConfig(QueryConfig):
    """Sizes of a policy of a published convolutional tower and a DistilBERT."""

    # Scales the tower's channels; 1 as published.
    multiplier: float = 0.35
    # Local folder of the pretrained tower as transformers saves it; None: fresh weights.
    checkpoint: str | None = None
    # Local folder of a pretrained DistilBERT as transformers saves it; None: fresh weights.
    text_checkpoint: str | None = None
    # DistilBERT's width, layers, heads and perceptrons.
    text_width: int = 64
    text_layers: int = 2
    text_heads: int = 4
    text_inner: int = 128

    @classmethod
    def tiny(cls) -> Self:
        """For tests: seconds to train, too small to be good."""
        return cls(
            multiplier=0.25,
            text_width=8,
            text_layers=1,
            text_heads=2,
            text_inner=16,
            queries=2,
            features=4,
            hidden=16,
            layers=1,
        )

    @classmethod
    def base(cls) -> Self:
        """Tower and DistilBERT of the published widths."""
        return cls(
            multiplier=1.0,
            text_width=768,
            text_layers=6,
            text_heads=12,
            text_inner=3072,
            queries=8,
            features=32,
            hidden=512,
        )

    def text_encoder(self, sizes: Sizes) -> DistilBert:
        """Make the DistilBERT of these sizes.

        Raises:
            ValueError: the checkpoint is of another kind or size, or does not fit the commands.
            OSError: its folder is missing or holds no model.
        """
        encoder = DistilBert(
            sizes.vocabulary,
            sizes.context_length,
            self.text_width,
            layers=self.text_layers,
            heads=self.text_heads,
            mlp_width=self.text_inner,
        )
        if self.text_checkpoint:
            encoder.fill(Path(self.text_checkpoint))
        return encoder
