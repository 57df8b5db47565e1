"""The embeddings: words, and where the model has them absolute positions and token types.

Shapes: B batch · L length · V vocabulary · E embedding width · D hidden size.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from megadeberta.layers.collectives import Collective
from megadeberta.layers.kept import dropout_keys
from megadeberta.layers.layer import Cut, Layer
from megadeberta.layers.micro_batch import INDEX_BYTES, PRECISE_BYTES, MicroBatch
from megadeberta.layers.parameters import Shapes, layer_norm, linear

WORD_TABLE = "embeddings.word_embeddings.weight"
POSITION_TABLE = "embeddings.position_embeddings.weight"


@dataclass(frozen=True)
class Embeddings(Layer, kind="embeddings"):
    """Tables, projection to the model's width, LayerNorm, dropout."""

    table: str | None = field(default="weight", kw_only=True)
    """What the word and position tables are called here. "weight": tables of its own. "delta": a difference from
    another part's (gradient-disentangled sharing). None: another part's tables."""

    cuts: ClassVar[Mapping[str, Cut]] = {
        f"embeddings.word_embeddings.{name}": "vocabulary" for name in ("weight", "base", "delta")
    }

    @property
    def reads(self) -> tuple[str, ...]:
        """Nothing: they are the first."""
        return ()

    def own_parameters(self) -> Shapes:
        """Tables that are its own, the projection of narrow ones, and the LayerNorm."""
        model, shapes = self.model, Shapes()
        size, width = model.hidden_size, model.embedding_width
        if self.table is not None:
            shapes[f"word_embeddings.{self.table}"] = (model.vocab_size, width)
            if model.position_biased_input:
                shapes[f"position_embeddings.{self.table}"] = (model.max_position_embeddings, width)
        if model.type_vocab_size:
            shapes["token_type_embeddings.weight"] = (model.type_vocab_size, width)
        if width != size:
            shapes |= linear("embed_proj", size, width, bias=False)
        return shapes | layer_norm("layer_norm", size)

    def multiply_adds(self, batch: MicroBatch, *, rows: float) -> float:
        """The projection of a word table that is narrower than the model."""
        if self.model.embedding_width == self.model.hidden_size:
            return 0.0
        return batch.tokens * self.model.embedding_width * self.model.hidden_size

    def kept_bytes(self, batch: MicroBatch) -> int:
        """Input of the LayerNorm, its statistics, the ids, the words of the dropout of all layers; and the narrow
        vectors, if there are any.

        Of all tokens, with sequence parallelism too: the tokens are divided behind the embeddings.
        """
        size, width, tokens = self.model.hidden_size, self.model.embedding_width, batch.tokens
        narrow = tokens * width * batch.element_bytes if width != size else 0
        kept = narrow + tokens * (size * batch.element_bytes + 2 * PRECISE_BYTES + INDEX_BYTES)
        return kept + dropout_keys(self.model, tokens)

    def collectives(self, batch: MicroBatch) -> list[Collective]:
        """The sum of the words over the shards; with sequence parallelism also the gradient of all tokens."""
        tokens = (batch.sequences, batch.length)
        words = (*tokens, self.model.embedding_width)
        found = [Collective("all_reduce", "forward", "words", words, batch.element_bytes)]
        if batch.sequence_parallel:
            hidden = (*tokens, self.model.hidden_size)
            found.append(Collective("all_gather", "backward", "embeddings gradient", hidden, batch.element_bytes))
        return found
