"""DeBERTa with its enhanced mask decoder, for transformers.

``DebertaV2ForMaskedLM`` predicts from the last layer's ordinary output. A DeBERTa was pre-trained otherwise: absolute
positions are added to the states below the last layer, and that layer runs twice on them as queries (DeBERTa paper,
sections 3.2 and A.8). This class does that, so that its fill-mask predictions are those of pre-training. Fine-tuning
does not need it: the backbone is the same.

    from transformers import AutoModelForMaskedLM
    model = AutoModelForMaskedLM.from_pretrained("path/of/this/folder", trust_remote_code=True)

or, with this file on your path and no trust in others:

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
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        **kwargs,
    ) -> MaskedLMOutput | tuple:
        """Logits ``[B, L, V]`` at every position; with ``labels`` (-100 = no target) the mean cross entropy too.

        ``position_ids`` are the absolute positions of the decoder; by default they count real tokens from 0, so that
        padding on the left does not shift them. Hidden states and attentions are those of the encoder.
        """
        config = self.config
        return_dict = config.return_dict if return_dict is None else return_dict
        wants_states = config.output_hidden_states if output_hidden_states is None else output_hidden_states
        outputs = self.deberta(
            input_ids,
            attention_mask=attention_mask,
            token_type_ids=token_type_ids,
            inputs_embeds=inputs_embeds,
            output_attentions=output_attentions,
            output_hidden_states=True,
            return_dict=True,
        )
        hidden = self._decode(outputs.hidden_states[-2], attention_mask, position_ids)
        logits = self.cls(hidden) if self.legacy else self.lm_predictions(hidden, self.get_input_embeddings())
        loss = None
        if labels is not None:
            loss = functional.cross_entropy(logits.flatten(0, 1).float(), labels.flatten().to(logits.device))
        states = outputs.hidden_states if wants_states else None
        if return_dict:
            return MaskedLMOutput(loss=loss, logits=logits, hidden_states=states, attentions=outputs.attentions)
        return tuple(part for part in (loss, logits, states, outputs.attentions) if part is not None)

    def get_output_embeddings(self) -> nn.Module | None:
        """The decoder over the vocabulary; None where it is the input table itself."""
        return self.cls.predictions.decoder if self.legacy else None

    def resize_token_embeddings(self, new_num_tokens=None, pad_to_multiple_of=None, mean_resizing=True) -> nn.Embedding:
        """As transformers', and the bias of the prediction head with it: 0 for new tokens."""
        table = super().resize_token_embeddings(new_num_tokens, pad_to_multiple_of, mean_resizing)
        if not self.legacy and self.lm_predictions.lm_head.bias.numel() != table.num_embeddings:
            old = self.lm_predictions.lm_head.bias
            bias = old.new_zeros(table.num_embeddings)
            kept = min(old.numel(), table.num_embeddings)
            bias[:kept] = old.detach()[:kept]
            self.lm_predictions.lm_head.bias = nn.Parameter(bias, requires_grad=old.requires_grad)
        return table

    def _decode(self, hidden: Tensor, attention_mask: Tensor | None, position_ids: Tensor | None) -> Tensor:
        """Decoder states ``[B, L, D]`` from the states below the last layer."""
        encoder, table = self.deberta.encoder, self.deberta.embeddings.position_embeddings
        length = hidden.size(1)
        if position_ids is None and length > table.num_embeddings:
            raise ValueError(f"{length} tokens, but the model has absolute positions for {table.num_embeddings}")
        if attention_mask is None:
            attention_mask = torch.ones(hidden.shape[:2], dtype=torch.long, device=hidden.device)
        if position_ids is None:
            # 0 for the padding on the left, the last position for that on the right: neither is attended to.
            position_ids = (attention_mask.long().cumsum(-1) - 1).clamp(min=0)
        query = hidden + table(position_ids)
        mask = encoder.get_attention_mask(attention_mask)
        relative_pos, rel_embeddings = encoder.get_rel_pos(hidden), encoder.get_rel_embedding()
        for _ in range(PASSES):
            query = encoder.layer[-1](
                hidden, mask, query_states=query, relative_pos=relative_pos, rel_embeddings=rel_embeddings
            )[0]
        return query
