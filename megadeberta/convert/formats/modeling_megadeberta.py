"""DeBERTa with its enhanced mask decoder, for transformers.

``DebertaV2ForMaskedLM`` predicts from the last layer's ordinary output. A DeBERTa was pre-trained otherwise: absolute
positions are added to the states below the last layer, and that layer runs twice on them as queries (DeBERTa paper,
sections 3.2 and A.8). This class does that, so that its fill-mask predictions are those of pre-training. Fine-tuning
does not need it: the backbone is the same.

    from modeling_megadeberta import DebertaV2ForMaskedLMWithMaskDecoder
    model = DebertaV2ForMaskedLMWithMaskDecoder.from_pretrained("path/of/this/folder")

Shapes: B batch · L length · D hidden size · V vocabulary.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import DebertaV2ForMaskedLM
from transformers.modeling_outputs import MaskedLMOutput

PASSES = 2


class DebertaV2ForMaskedLMWithMaskDecoder(DebertaV2ForMaskedLM):
    """``DebertaV2ForMaskedLM`` whose logits come out of the enhanced mask decoder."""

    def __init__(self, config) -> None:
        if config.position_biased_input:
            raise ValueError("this model has absolute positions at the input and no mask decoder")
        super().__init__(config)
        # Read by the decoder only: the embedding layer does not add it while position_biased_input is false.
        self.deberta.embeddings.position_embeddings = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        labels: Tensor | None = None,
    ) -> MaskedLMOutput:
        """Logits ``[B, L, V]`` at every position; with ``labels`` (-100 = no target) the mean cross entropy too."""
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        outputs = self.deberta(
            input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids, output_hidden_states=True
        )
        hidden = self._decode(outputs.hidden_states[-2], attention_mask)
        if self.legacy:
            logits = self.cls(hidden)
        else:
            logits = self.lm_predictions(hidden, self.deberta.embeddings.word_embeddings)
        loss = None
        if labels is not None:
            loss = functional.cross_entropy(logits.flatten(0, 1).float(), labels.flatten())
        return MaskedLMOutput(loss=loss, logits=logits, hidden_states=outputs.hidden_states)

    def _decode(self, hidden: Tensor, attention_mask: Tensor) -> Tensor:
        """Decoder states ``[B, L, D]`` from the states below the last layer."""
        encoder, table = self.deberta.encoder, self.deberta.embeddings.position_embeddings
        length = hidden.size(1)
        if length > table.num_embeddings:
            raise ValueError(f"{length} tokens, but the model has absolute positions for {table.num_embeddings}")
        query = hidden + table.weight[:length]
        mask = encoder.get_attention_mask(attention_mask)
        relative_pos, rel_embeddings = encoder.get_rel_pos(hidden), encoder.get_rel_embedding()
        for _ in range(PASSES):
            query = encoder.layer[-1](
                hidden, mask, query_states=query, relative_pos=relative_pos, rel_embeddings=rel_embeddings
            )[0]
        return query
