"""DistilBERT (Sanh et al. 2019) as transformers has it, with fresh weights for a vocabulary of one's own."""

from torch import Tensor, nn
from transformers import DistilBertConfig, DistilBertModel


class DistilBert(nn.Module):
    """Commands to one vector a token."""

    def __init__(
        self, vocabulary: int, length: int, *, width: int, layers: int, heads: int, inner: int
    ) -> None:
        """Make the encoder.

        Args:
            vocabulary: entries of the tokenizer's vocabulary
            length: longest command [tokens]
            width: of all vectors
            layers: number of them
            heads: of a layer's attention
            inner: width of the perceptron in a layer
        """
        super().__init__()
        config = DistilBertConfig(
            vocab_size=vocabulary,
            max_position_embeddings=length,
            dim=width,
            n_layers=layers,
            n_heads=heads,
            hidden_dim=inner,
            dropout=0.0,
            attention_dropout=0.0,
            pad_token_id=None,
        )
        self.bert = DistilBertModel(config)
        # Zero vectors: a word that training never met is less of a disturbance.
        nn.init.zeros_(self.bert.embeddings.word_embeddings.weight)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Encode int64 [N, L] to float32 [N, L, width]; padding is not read.

        The mask is given in its final form: transformers makes it from a mask [N, L] by branches that depend
        on its values, which a trace would freeze.
        """
        read = attention_mask.bool()[:, None, None].expand(-1, 1, input_ids.shape[1], -1)
        return self.bert(input_ids=input_ids, attention_mask=read).last_hidden_state
