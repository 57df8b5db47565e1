"""All layer specs as one module: what a single process, or ZeRO without a pipeline, trains."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from megadeberta.config.model import ModelConfig
from megadeberta.model.carry import Carry, gather_rows
from megadeberta.model.embeddings import Embeddings, RelativeTable
from megadeberta.model.layer import EncoderLayer
from megadeberta.model.mask_decoder import EnhancedMaskDecoder
from megadeberta.model.mlm_head import MlmHead
from megadeberta.ops.tied_table import TiedGradient
from megadeberta.spec import LayerSpec, Tie

WORD_TABLE = "embeddings.word_embeddings.weight"


def backbone_specs(config: ModelConfig) -> list[LayerSpec]:
    """The encoder. With the enhanced mask decoder, the last layer belongs to the decoder's spec."""
    specs = [LayerSpec("embeddings", lambda: Embeddings(config))]
    if config.relative_attention:
        specs.append(LayerSpec("relative", lambda: RelativeTable(config)))
    plain_layers = config.num_hidden_layers - (1 if config.enhanced_mask_decoder else 0)
    for i in range(plain_layers):
        convolution = i == 0 and config.conv_kernel_size > 0
        specs.append(LayerSpec(f"layer.{i}", lambda c=convolution: EncoderLayer(config, convolution=c)))
    if config.enhanced_mask_decoder:
        specs.append(LayerSpec("mask_decoder", lambda: EnhancedMaskDecoder(config)))
    return specs


def mlm_specs(config: ModelConfig) -> list[LayerSpec]:
    """Encoder, decoder and head for masked language modelling."""
    head = LayerSpec("mlm_head", lambda: MlmHead(config), ties=(Tie("decoder.weight", WORD_TABLE),))
    return [*backbone_specs(config), head]


class WholeModel(nn.Module):
    """Runs a list of specs in order, in one process.

    Parameter names are ``<spec name>.<name inside the layer>``: the same under every layout.
    """

    def __init__(self, specs: Sequence[LayerSpec]) -> None:
        super().__init__()
        self.layer_names = [spec.name for spec in specs]
        for spec in specs:
            layer = spec.build()
            for tie in spec.ties:
                owner, _, attribute = tie.attribute.rpartition(".")
                setattr(layer.get_submodule(owner), attribute, self.get_parameter(tie.source))
            _attach(self, spec.name, layer)

    def run(self, carry: Carry, *, without: str | None = None) -> Carry:
        """Pass the carry through all layers except the one named ``without``."""
        for name in self.layer_names:
            if name != without:
                carry = self.get_submodule(name)(carry)
        return carry

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, masked_positions: Tensor, masked_labels: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Training step of masked language modelling.

        Args:
            input_ids: ``[B, L]`` int64.
            attention_mask: ``[B, L]`` bool or 0/1 integers.
            masked_positions: ``[B, Q]``, 0 in empty slots.
            masked_labels: ``[B, Q]``, original ids, 0 in empty slots.

        Returns:
            Loss sum, number of targets, number of correct predictions; scalars over this micro batch.
        """
        carry = Carry(
            input_ids,
            attention_mask.bool(),
            masked_positions=masked_positions,
            masked_labels=masked_labels,
            # Input and output of the word table are both in this module, so their gradients can be one.
            tied_gradient=TiedGradient(self.get_parameter(WORD_TABLE)),
        )
        done = self.run(carry)
        return done.loss_sum, done.target_count, done.correct_count

    def encode(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None) -> Tensor:
        """Last hidden state ``[B, L, D]`` of the backbone: what fine-tuning uses and an exported encoder gives."""
        carry = Carry(input_ids, attention_mask.bool(), token_type_ids)
        return self.run(carry, without="mlm_head").hidden

    def mlm_logits(self, input_ids: Tensor, attention_mask: Tensor, positions: Tensor | None = None) -> Tensor:
        """Vocabulary logits ``[B, Q, V]`` at ``positions`` ``[B, Q]``, or ``[B, L, V]`` at all of them."""
        batch, length = input_ids.shape
        if positions is None:
            positions = torch.arange(length, device=input_ids.device).expand(batch, length)
        carry = self.run(Carry(input_ids, attention_mask.bool(), masked_positions=positions), without="mlm_head")
        rows = carry.masked_hidden
        if rows is None:
            rows = gather_rows(carry.hidden, positions)
        return self.get_submodule("mlm_head").logits(rows)


def _attach(root: nn.Module, name: str, layer: nn.Module) -> None:
    """Add ``layer`` under a dotted name, making the containers on the way."""
    *containers, leaf = name.split(".")
    for container in containers:
        if not hasattr(root, container):
            root.add_module(container, nn.Module())
        root = root.get_submodule(container)
    root.add_module(leaf, layer)
