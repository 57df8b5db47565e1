"""The enhanced mask decoder: absolute positions enter just before the prediction.

Shapes: B batch · L length · Q masked rows a sample · D hidden size.
"""

from dataclasses import replace

from torch import Tensor, nn

from megadeberta.config.model import ModelConfig
from megadeberta.layers.mask_decoder import PASSES
from megadeberta.model.attention import QueryStream
from megadeberta.model.carry import Carry, gather_rows
from megadeberta.model.layer import EncoderLayer


class EnhancedMaskDecoder(nn.Module):
    """The encoder's last layer, run twice for the masked rows only (paper sections 3.2 and A.8).

    The first query stream is the hidden state below the last layer plus the absolute position; keys and values stay
    those of the hidden state, so they are projected once for both passes. Rows are gathered before the layer, which
    equals running it at full length and selecting rows after (microsoft/DeBERTa ``masked_language_model.py``).
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.layer = EncoderLayer(config)
        self.position_embeddings = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.all_tokens = nn.Identity()  # an insertion point of sequence parallelism: the keys are of whole sequences

    def forward(self, carry: Carry) -> Carry:
        """Fill ``masked_hidden``; with no masked positions in the carry, run the layer in its ordinary way."""
        whole = replace(carry, hidden=self.all_tokens(carry.hidden))
        if carry.masked_positions is None:
            return self.layer(whole)
        return replace(carry, masked_hidden=self.decode(whole, carry.masked_positions))

    def decode(self, carry: Carry, positions: Tensor) -> Tensor:
        """Decoder states ``[B, Q, D]`` at ``positions`` ``[B, Q]``."""
        mask = carry.visibility
        if mask is not None:
            mask = mask.at_rows(positions)  # empty slots have position 0 and are dropped later
        keys = self.layer.project_keys(carry)
        query = gather_rows(carry.field("hidden"), positions)
        query = query + self.position_embeddings(carry.local_positions(positions))
        for number in range(PASSES):
            draws = None if carry.draws is None else carry.draws.at(positions, stream=number)
            query = self.layer.attend(QueryStream(query, mask, draws, positions), keys)
        return query
