"""The catalogue's layers as one module: what a single process, or ZeRO without a pipeline, trains.

Shapes: B batch · L length · Q target rows per sequence · D hidden size · V vocabulary.
"""

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from megadeberta.batch import ATTENTION_MASK, SAMPLE_NUMBERS, Batch
from megadeberta.config.objective import GENERATOR
from megadeberta.layers import embeddings, encoder, heads, mask_decoder, relative
from megadeberta.layers.layer import Layer
from megadeberta.model.carry import Carry, Term, gather_rows
from megadeberta.model.embeddings import Embeddings, RelativeTable
from megadeberta.model.layer import EncoderLayer
from megadeberta.model.mask_decoder import EnhancedMaskDecoder
from megadeberta.model.mlm_head import MlmHead
from megadeberta.model.rtd_head import RtdHead
from megadeberta.model.sampling import Sample
from megadeberta.ops.recompute import suspended_twice
from megadeberta.ops.tied_table import TiedGradient

_WORDS = f".{embeddings.WORD_TABLE.removeprefix('embeddings.')}"

MODULES: dict[str, Callable[[Any], nn.Module]] = {
    embeddings.Embeddings.kind: lambda layer: Embeddings(layer.model, differences=layer.table == "delta"),
    relative.RelativeTable.kind: lambda layer: RelativeTable(layer.model),
    encoder.EncoderLayer.kind: lambda layer: EncoderLayer(layer.model, convolution=layer.convolution),
    mask_decoder.MaskDecoder.kind: lambda layer: EnhancedMaskDecoder(layer.model),
    heads.MlmHead.kind: lambda layer: MlmHead(layer.model, for_sampling=layer.for_sampling),
    heads.Sample.kind: lambda layer: Sample(layer.temperature),
    heads.RtdHead.kind: lambda layer: RtdHead(layer.model),
}
"""The torch module of a layer, by its kind. Register others with ``register_module``."""


def register_module(kind: str, build: Callable[[Any], nn.Module]) -> None:
    """Add the module of a new kind of layer; a module of ``plugins`` calls it.

    Args:
        build: given the layer of the catalogue, makes a module whose ``forward`` takes and returns a ``Carry``.
    """
    MODULES[kind] = build


def build_module(layer: Layer) -> nn.Module:
    """The torch module of a layer; tied parameters are not there yet."""
    return MODULES[layer.kind](layer)


class WholeModel(nn.Module):
    """Runs a list of layers in order, in one process.

    Parameter names are ``<layer name>.<name inside the layer>``: the same under every layout.
    """

    def __init__(self, layers: Sequence[Layer], *, recompute: bool = False) -> None:
        """``recompute``: activation checkpointing, see ``run_layers``."""
        super().__init__()
        self.recompute = recompute
        self.layers = tuple(layers)
        for layer in layers:
            module = build_module(layer)
            for tie in layer.ties:
                owner, _, attribute = tie.attribute.rpartition(".")
                setattr(module.get_submodule(owner), attribute, self.get_parameter(tie.source))
            attach_module(self, layer.name, module)

    def run(self, carry: Carry, layers: Sequence[Layer] | None = None) -> Carry:
        """Pass the carry through these layers, or through all."""
        return run_layers(self, self.layers if layers is None else layers, carry, recompute=self.recompute)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        masked_positions: Tensor | None = None,
        masked_labels: Tensor | None = None,
        sample_numbers: Tensor | None = None,
        *,
        part: str | None = None,
        **more: Tensor,
    ) -> tuple[dict[str, Term], dict[str, Tensor]]:
        """One training pass.

        Args:
            input_ids: ``[B, L]`` int64.
            attention_mask: ``[B, L]`` bool or 0/1 integers; None: every token is real.
            masked_positions: ``[B, Q]``, 0 in empty slots.
            masked_labels: ``[B, Q]``, ids to predict, 0 in empty slots.
            sample_numbers: ``[B]`` int64, see ``Draws``; without them there is no dropout and no sampling.
            part: run the generator or the discriminator only; the latter needs ``replaced``.
            more: other fields of the batch.

        Returns:
            Terms by name, each a (sum, count) over this micro batch; and, after the generator alone, the
            discriminator's inputs.
        """
        given = {
            "input_ids": input_ids,
            ATTENTION_MASK: attention_mask,
            "masked_positions": masked_positions,
            "masked_labels": masked_labels,
            SAMPLE_NUMBERS: sample_numbers,
            **more,
        }
        batch = {name: tensor for name, tensor in given.items() if tensor is not None}
        carry = Carry.of_batch(batch, tied_gradient=self._tied_gradient(part))
        layers = None if part is None else [layer for layer in self.layers if layer.part == part]
        done = self.run(carry, layers)
        handed_on = {} if part != GENERATOR else self._handed_on(batch, done)
        return dict(done.terms), handed_on

    def _tied_gradient(self, part: str | None) -> TiedGradient | None:
        """What joins the gradients of the word table's uses as input and as output, where both are in this pass.

        With a discriminator the table may have a third use, and autograd adds them up.
        """
        sources = {tie.source for layer in self.layers if isinstance(layer, heads.MlmHead) for tie in layer.ties}
        names = [layer.name for layer in self.layers if part in (None, layer.part)]
        table = next((source for source in sources if source.removesuffix(_WORDS) in names), None)
        return None if table is None else TiedGradient(self.get_parameter(table))

    def _handed_on(self, batch: Batch, done: Carry) -> Batch:
        """The batch as the layers behind the generator read it."""
        drops = {name for layer in self.layers if layer.part == GENERATOR for name in layer.drops}
        adds = [name for layer in self.layers if layer.part == GENERATOR for name in layer.adds]
        fields = [name for name in batch if name not in drops and name != SAMPLE_NUMBERS]
        numbers = {SAMPLE_NUMBERS: batch[SAMPLE_NUMBERS]} if SAMPLE_NUMBERS in batch else {}
        return {name: done.field(name) for name in (*fields, *adds)} | numbers

    def encode(
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None, **more: Any
    ) -> Tensor:
        """Last hidden state ``[B, L, D]`` of the backbone, the last part's if there are several: for fine-tuning.

        Args:
            more: fields of ``Carry`` that limit attention.
        """
        carry = Carry(input_ids, attention_mask.bool(), token_type_ids, **more)
        return self.run(carry, self._backbone(self.layers[-1].part)).field("hidden")

    def mlm_logits(
        self, input_ids: Tensor, attention_mask: Tensor, positions: Tensor | None = None, **more: Any
    ) -> Tensor:
        """Vocabulary logits ``[B, Q, V]`` at ``positions`` ``[B, Q]``, or ``[B, L, V]`` at all of them."""
        batch, length = input_ids.shape
        if positions is None:
            positions = torch.arange(length, device=input_ids.device).expand(batch, length)
        head = next(layer for layer in self.layers if isinstance(layer, heads.MlmHead))
        carry = Carry(input_ids, attention_mask.bool(), masked_positions=positions, **more)
        done = self.run(carry, self._backbone(head.part))
        rows = done.masked_hidden
        if rows is None:
            rows = gather_rows(done.field("hidden"), positions)
        return cast(MlmHead, self.get_submodule(head.name)).logits(rows)

    def _backbone(self, part: str) -> list[Layer]:
        return [layer for layer in self.layers if layer.part == part and not layer.is_head]


def run_layers(root: nn.Module, layers: Sequence[Layer], carry: Carry, *, recompute: bool = False) -> Carry:
    """Pass the carry through the modules of these layers under ``root``.

    Args:
        recompute: keep only the input of each encoder layer and run it again in the backward pass. Dropout is a
            function of the batch, so both runs drop the same.
    """
    for layer in layers:
        module = root.get_submodule(layer.name)
        if recompute and layer.is_encoder and torch.is_grad_enabled():
            carry = checkpoint(module, carry, use_reentrant=False, preserve_rng_state=False, context_fn=suspended_twice)
        else:
            carry = module(carry)
    return carry


def attach_module(root: nn.Module, name: str, module: nn.Module) -> None:
    """Add ``module`` under a dotted name, making the containers on the way."""
    *containers, leaf = name.split(".")
    for container in containers:
        if not hasattr(root, container):
            root.add_module(container, nn.Module())
        root = root.get_submodule(container)
    root.add_module(leaf, module)
