"""All layer specs as one module: what a single process, or ZeRO without a pipeline, trains.

Shapes: B batch · L length · Q target rows a sample · D hidden size · V vocabulary.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from megadeberta.config.model import ModelConfig
from megadeberta.config.objective import DISCRIMINATOR, GENERATOR, ObjectiveConfig, RtdConfig, part_of
from megadeberta.model.carry import Carry, Term, gather_rows
from megadeberta.model.dropout import Draws
from megadeberta.model.embeddings import Embeddings, RelativeTable
from megadeberta.model.layer import EncoderLayer
from megadeberta.model.mask_decoder import EnhancedMaskDecoder
from megadeberta.model.mlm_head import MlmHead
from megadeberta.model.rtd_head import RtdHead
from megadeberta.model.sampling import Sample
from megadeberta.ops.recompute import suspended_twice
from megadeberta.ops.tied_table import TiedGradient
from megadeberta.spec import LayerSpec, Tie

WORD_TABLE = "embeddings.word_embeddings.weight"
POSITION_TABLE = "embeddings.position_embeddings.weight"
SAMPLE = f"{GENERATOR}.sample"
MLM_HEAD, RTD_HEAD = "mlm_head", "rtd_head"


def build_specs(model: ModelConfig, objective: ObjectiveConfig) -> list[LayerSpec]:
    """Every layer that the objective trains, in order."""
    return rtd_specs(model, objective.rtd) if objective.name == "rtd" else mlm_specs(model)


def backbone_specs(config: ModelConfig, *, prefix: str = "", embeddings: LayerSpec | None = None) -> list[LayerSpec]:
    """The encoder. With the enhanced mask decoder, the last layer belongs to the decoder's spec.

    Args:
        prefix: ahead of every name, e.g. ``generator.``.
        embeddings: in place of tables of the encoder's own.
    """
    specs = [embeddings or LayerSpec(f"{prefix}embeddings", lambda: Embeddings(config))]
    if config.relative_attention:
        specs.append(LayerSpec(f"{prefix}relative", lambda: RelativeTable(config)))
    plain_layers = config.num_hidden_layers - (1 if config.enhanced_mask_decoder else 0)
    for i in range(plain_layers):
        convolution = i == 0 and config.conv_kernel_size > 0
        specs.append(LayerSpec(f"{prefix}layer.{i}", lambda c=convolution: EncoderLayer(config, convolution=c)))
    if config.enhanced_mask_decoder:
        specs.append(LayerSpec(f"{prefix}mask_decoder", lambda: EnhancedMaskDecoder(config)))
    return specs


def mlm_specs(config: ModelConfig, *, prefix: str = "") -> list[LayerSpec]:
    """Encoder, decoder and head that predict tokens: masked ones, or next ones. A generator is sampled from."""
    ties = (Tie("decoder.weight", f"{prefix}{WORD_TABLE}"),)
    is_generator = part_of(prefix) == GENERATOR
    head = LayerSpec(f"{prefix}{MLM_HEAD}", lambda: MlmHead(config, for_sampling=is_generator), ties=ties)
    return [*backbone_specs(config, prefix=prefix), head]


def rtd_specs(config: ModelConfig, rtd: RtdConfig) -> list[LayerSpec]:
    """Generator, sampling, discriminator and its head: one list, so that it can be cut anywhere."""
    discriminator = rtd.discriminator(config)
    prefix = f"{DISCRIMINATOR}."
    return [
        *mlm_specs(rtd.generator(config), prefix=f"{GENERATOR}."),
        LayerSpec(SAMPLE, lambda: Sample(rtd.sampling_temperature)),
        *backbone_specs(discriminator, prefix=prefix, embeddings=_discriminator_embeddings(discriminator, rtd)),
        LayerSpec(f"{prefix}{RTD_HEAD}", lambda: RtdHead(discriminator)),
    ]


def _discriminator_embeddings(config: ModelConfig, rtd: RtdConfig) -> LayerSpec:
    """NES: tables of its own. ES: the generator's. GDES: the generator's, without gradient, plus a difference.

    Shared are the word and the absolute position table, nothing else (microsoft/DeBERTa ``rtd_task.py``).
    """
    sharing = rtd.embedding_sharing
    tables = [WORD_TABLE, POSITION_TABLE] if config.position_biased_input else [WORD_TABLE]
    ties: tuple[Tie, ...] = ()
    if sharing != "nes":
        owned = "base" if sharing == "gdes" else "weight"
        attributes = [table.removeprefix("embeddings.").replace("weight", owned) for table in tables]
        ties = tuple(Tie(a, f"{GENERATOR}.{t}") for a, t in zip(attributes, tables, strict=True))
    return LayerSpec(f"{DISCRIMINATOR}.embeddings", lambda: Embeddings(config, differences=sharing == "gdes"), ties)


class WholeModel(nn.Module):
    """Runs a list of specs in order, in one process.

    Parameter names are ``<spec name>.<name inside the layer>``: the same under every layout.
    """

    def __init__(self, specs: Sequence[LayerSpec], *, recompute: bool = False) -> None:
        """``recompute``: activation checkpointing, see ``run_layers``."""
        super().__init__()
        self.recompute = recompute
        self.layer_names = [spec.name for spec in specs]
        for spec in specs:
            layer = spec.build()
            for tie in spec.ties:
                owner, _, attribute = tie.attribute.rpartition(".")
                setattr(layer.get_submodule(owner), attribute, self.get_parameter(tie.source))
            attach_layer(self, spec.name, layer)

    def run(self, carry: Carry, names: Sequence[str] | None = None) -> Carry:
        """Pass the carry through the layers of these names, or through all."""
        return run_layers(self, self.layer_names if names is None else names, carry, recompute=self.recompute)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
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
            attention_mask: ``[B, L]`` bool or 0/1 integers.
            masked_positions: ``[B, Q]``, 0 in empty slots.
            masked_labels: ``[B, Q]``, ids to predict, 0 in empty slots.
            sample_numbers: ``[B]`` int64, see ``Draws``; without them there is no dropout and no sampling.
            part: run the generator or the discriminator only; the latter needs ``replaced``.
            more: other fields of ``Carry``.

        Returns:
            Terms by name, each a (sum, count) over this micro batch; and, after the generator alone, the
            discriminator's inputs.
        """
        # Input and output of the word table are both in this module, so their gradients can be one. With a
        # discriminator the table may have a third use, and autograd adds them up.
        table = f"{GENERATOR}.{WORD_TABLE}" if self._has_parts else WORD_TABLE
        reads_words = part != DISCRIMINATOR and table.removesuffix(".word_embeddings.weight") in self.layer_names
        tied = TiedGradient(self.get_parameter(table)) if reads_words else None
        carry = Carry(
            input_ids,
            attention_mask.bool(),
            masked_positions=masked_positions,
            masked_labels=masked_labels,
            draws=None if sample_numbers is None else Draws.of(sample_numbers, input_ids.size(1)),
            tied_gradient=tied,
            **more,
        )
        names = None if part is None else [name for name in self.layer_names if part_of(name) == part]
        done = self.run(carry, names)
        handed_on = {}
        if part == GENERATOR:
            handed_on = {"input_ids": done.input_ids, "attention_mask": done.attention_mask, "replaced": done.replaced}
            if sample_numbers is not None:
                handed_on["sample_numbers"] = sample_numbers
            if done.document_starts is not None:
                handed_on["document_starts"] = done.document_starts
        return dict(done.terms), handed_on

    def encode(
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None, **more: Tensor
    ) -> Tensor:
        """Last hidden state ``[B, L, D]`` of the backbone, of the discriminator if there is one: what fine-tuning uses.

        Args:
            more: fields of ``Carry`` that limit attention.
        """
        carry = Carry(input_ids, attention_mask.bool(), token_type_ids, **more)
        return self.run(carry, self._backbone(DISCRIMINATOR if self._has_parts else "")).hidden

    def mlm_logits(
        self, input_ids: Tensor, attention_mask: Tensor, positions: Tensor | None = None, **more: Tensor
    ) -> Tensor:
        """Vocabulary logits ``[B, Q, V]`` at ``positions`` ``[B, Q]``, or ``[B, L, V]`` at all of them."""
        batch, length = input_ids.shape
        if positions is None:
            positions = torch.arange(length, device=input_ids.device).expand(batch, length)
        part = GENERATOR if self._has_parts else ""
        carry = Carry(input_ids, attention_mask.bool(), masked_positions=positions, **more)
        done = self.run(carry, self._backbone(part))
        rows = done.masked_hidden
        if rows is None:
            rows = gather_rows(done.hidden, positions)
        return self.get_submodule(f"{part}.{MLM_HEAD}" if part else MLM_HEAD).logits(rows)

    def rtd_logits(self, input_ids: Tensor, attention_mask: Tensor, document_starts: Tensor | None = None) -> Tensor:
        """``[B, L]``: above 0 where the discriminator takes the token for a replaced one."""
        carry = Carry(input_ids, attention_mask.bool(), document_starts=document_starts)
        hidden = self.run(carry, self._backbone(DISCRIMINATOR)).hidden
        return self.get_submodule(f"{DISCRIMINATOR}.{RTD_HEAD}").logits(hidden, document_starts)

    @property
    def _has_parts(self) -> bool:
        return SAMPLE in self.layer_names

    def _backbone(self, part: str) -> list[str]:
        heads = (MLM_HEAD, RTD_HEAD, "sample")
        return [n for n in self.layer_names if part_of(n) == part and n.rpartition(".")[2] not in heads]


def run_layers(root: nn.Module, names: Sequence[str], carry: Carry, *, recompute: bool = False) -> Carry:
    """Pass the carry through the modules of these names under ``root``.

    Args:
        recompute: keep only the input of each encoder layer and run it again in the backward pass. Dropout is a
            function of the batch, so both runs drop the same.
    """
    for name in names:
        layer = root.get_submodule(name)
        if recompute and torch.is_grad_enabled() and isinstance(layer, EncoderLayer | EnhancedMaskDecoder):
            carry = checkpoint(layer, carry, use_reentrant=False, preserve_rng_state=False, context_fn=suspended_twice)
        else:
            carry = layer(carry)
    return carry


def attach_layer(root: nn.Module, name: str, layer: nn.Module) -> None:
    """Add ``layer`` under a dotted name, making the containers on the way."""
    *containers, leaf = name.split(".")
    for container in containers:
        if not hasattr(root, container):
            root.add_module(container, nn.Module())
        root = root.get_submodule(container)
    root.add_module(leaf, layer)
