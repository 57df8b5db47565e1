"""The models whose training steps are compared: transformers' DebertaV2ForMaskedLM as it is and with the attention of
two public packages, ours, and a BERT of the same size out of our layers.

Shapes: B batch · L length · Q masked positions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import TYPE_CHECKING

import torch
from peers import BERT, EAGER, PACKAGES
from stopwatch import KeptTensors
from torch import Tensor, nn
from torch.nn import functional

from megadeberta.config.model import ModelConfig
from megadeberta.config.objective import ObjectiveConfig
from megadeberta.convert.formats.config_json import to_config_json
from megadeberta.convert.formats.families import choose_target
from megadeberta.convert.formats.family import ModelKind
from megadeberta.convert.formats.names import mlm_names
from megadeberta.layers.objectives import list_layers, objective_of
from megadeberta.model.attention import DisentangledSelfAttention
from megadeberta.model.attention_backend import select_attention, select_recompute, select_residual_norm
from megadeberta.model.dropout import set_sites
from megadeberta.model.initialize import initialize
from megadeberta.model.logit_kernels import select_logits
from megadeberta.model.whole import WholeModel
from megadeberta.ops.attention.backends import Backend, register_backend

if TYPE_CHECKING:  # ours runs where it is not installed
    from transformers import DebertaV2ForMaskedLM

MASK_RATE = 0.15
MASKED = ObjectiveConfig(mask_rate=MASK_RATE)
REPLACED = ObjectiveConfig(name="rtd")
DECODER = "megadeberta, mask decoder"
TOY = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 1,
    "intermediate_size": 64,
    "vocab_size": 200,
    "position_buckets": 16,
    "max_position_embeddings": 64,
}


@dataclass(frozen=True)
class Batch:
    """Random ids; ``labels`` are transformers' form of the masked positions and labels."""

    ids: Tensor  # [B, L]
    mask: Tensor  # [B, L]
    has_padding: bool
    positions: Tensor  # [B, Q]
    targets: Tensor  # [B, Q]
    labels: Tensor  # [B, L], -100 = no target
    numbers: Tensor  # [B], what our dropout is a function of


def draw_batch(batch: int, length: int, vocabulary: int, *, device: torch.device | None = None) -> Batch:
    mask_id = vocabulary - 10
    clean = torch.randint(5, mask_id, (batch, length))
    count = round(MASK_RATE * length)
    positions = torch.stack([torch.randperm(length)[:count].sort().values for _ in range(batch)])
    targets = clean.gather(1, positions)
    labels = torch.full_like(clean, -100).scatter_(1, positions, targets)
    ids = clean.scatter(1, positions, mask_id)
    tensors = (ids, torch.ones_like(ids), positions, targets, labels, torch.arange(batch))
    ids, mask, *others = (tensor.to(device or "cpu") for tensor in tensors)
    return Batch(ids, mask, False, *others)


def build_theirs(config: ModelConfig) -> DebertaV2ForMaskedLM:
    from transformers import DebertaV2Config, DebertaV2ForMaskedLM

    torch.manual_seed(0)
    return DebertaV2ForMaskedLM(DebertaV2Config(**to_config_json(config, choose_target(config, ModelKind.MLM))))


def build_ours(
    config: ModelConfig, *, backend: str, device: torch.device, objective: ObjectiveConfig | None = None
) -> WholeModel:
    """Of masked tokens unless another objective is given."""
    model = WholeModel(list_layers(config, objective or ObjectiveConfig()))
    initialize(model, seed=0, std=config.initializer_range)
    set_sites(model.named_modules(), seed=0)
    select_attention(model, backend, device)
    select_residual_norm(model, "auto", device, attention=backend)
    select_logits(model, "auto", device, torch.bfloat16 if device.type == "cuda" else torch.float32)
    return model


def copy_weights(theirs: DebertaV2ForMaskedLM, ours: WholeModel, config: ModelConfig) -> None:
    """Give our model the weights of transformers'."""
    names, state = mlm_names(config), theirs.state_dict()
    with torch.no_grad():
        for name, parameter in ours.named_parameters():
            parameter.copy_(state[names[name]])


def changed(config: ModelConfig, **changes: object) -> ModelConfig:
    return ModelConfig(**{**config.model_dump(), **changes})


def bert_of(config: ModelConfig) -> ModelConfig:
    """The same sizes with absolute positions at the input and plain attention: the price of disentangled attention."""
    return changed(config, relative_attention=False, position_biased_input=True, enhanced_mask_decoder=False)


def build_bert(config: ModelConfig, *, backend: str, device: torch.device) -> WholeModel:
    """Out of our layers, with torch's scaled_dot_product_attention in the place of ours; all else by ``backend``."""
    name = register_sdpa()
    model = build_ours(config, backend=backend, device=device)
    for module in model.modules():
        if isinstance(module, DisentangledSelfAttention):
            module.backend = name
    return model


def register_sdpa() -> str:
    """The name by which ``training.attention`` takes torch's own attention."""
    register_backend(Backend("sdpa", "torch's scaled_dot_product_attention, without positions", _sdpa))
    return "sdpa"


def _sdpa(query: Tensor, key: Tensor, value: Tensor, **options) -> Tensor:
    """Every token sees every other: the batches here have no padding, and a mask would cost SDPA its fast kernel."""
    dropout = options["dropout"]
    probability = 0.0 if dropout is None else dropout.probability
    return functional.scaled_dot_product_attention(query, key, value, dropout_p=probability)


def use_flashdeberta(model: DebertaV2ForMaskedLM) -> None:
    """Put the attention of the package flashdeberta (0.0.8) into transformers' model; it has no attention dropout."""
    from flashdeberta import FlashDisentangledSelfAttention

    for layer in model.deberta.encoder.layer:
        fast = FlashDisentangledSelfAttention(model.config)
        fast.load_state_dict(layer.attention.self.state_dict())
        layer.attention.self = fast.to(layer.attention.self.query_proj.weight)


def use_disentangled_flash(model: DebertaV2ForMaskedLM) -> None:
    """Put the encoder of the package disentangled-flash (1.1.1) into transformers' model."""
    from disentangled_flash import enable_deberta_training

    enable_deberta_training(model.deberta, assume_unpadded=True)


PACKAGE_USES: dict[str, Callable[[DebertaV2ForMaskedLM], None]] = {
    "disentangled-flash": use_disentangled_flash,
    "flashdeberta": use_flashdeberta,
}
"""How a package's attention is put into transformers' model."""


def find_packages(device: torch.device) -> list[str]:
    """The packages that can run here; prints which cannot, and why."""
    found = []
    for package, module in PACKAGES.items():
        if device.type != "cuda":
            print(f"{package} left out: its kernels need a CUDA GPU")
        elif find_spec(module) is None:
            print(f"{package} left out: not installed (pip install {package})")
        else:
            found.append(package)
    return found


@dataclass(frozen=True)
class Variant:
    """One model of the comparison: what it is made from, how, and its loss."""

    config: ModelConfig
    build: Callable[[ModelConfig], nn.Module]
    loss: Callable[[nn.Module, Batch], Tensor]

    @property
    def is_ours(self) -> bool:
        return self.loss is our_loss

    def step(self, model: nn.Module, batch: Batch) -> None:
        """Forward and backward."""
        model.zero_grad()
        self.loss(model, batch).backward()

    def kept_bytes(self, model: nn.Module, batch: Batch) -> int:
        """What the forward pass keeps for the backward pass."""
        with KeptTensors() as kept:
            loss = self.loss(model, batch)
            return kept.bytes() - loss.nbytes


def variants(
    config: ModelConfig, device: torch.device, *, packages: list[str], backends: dict[str, str]
) -> dict[str, Variant]:
    """Every model of the comparison, transformers' own first.

    Args:
        packages: from ``find_packages``.
        backends: ``training.attention`` of each of our models, by its name. The first one also runs with the mask
            decoder, which transformers does not have.
    """
    plain = changed(config, enhanced_mask_decoder=False)
    found = {EAGER: Variant(plain, build_theirs, their_loss)}
    for package in packages:
        use = PACKAGE_USES[package]
        found[package] = Variant(plain, lambda c, use=use: _with(build_theirs(c).to(device), use), their_loss)
    for name, backend in backends.items():
        found[name] = Variant(plain, lambda c, b=backend: build_ours(c, backend=b, device=device), our_loss)
    main = next(iter(backends.values()))
    whole = changed(config, enhanced_mask_decoder=True)
    found[DECODER] = Variant(whole, lambda c: build_ours(c, backend=main, device=device), our_loss)
    found[BERT] = Variant(bert_of(config), lambda c: build_bert(c, backend=main, device=device), our_loss)
    return found


def selective(variant: Variant) -> Variant:
    """The same model, with selective recompute."""

    def build(config: ModelConfig) -> nn.Module:
        model = variant.build(config)
        select_recompute(model, True)
        return model

    return replace(variant, build=build)


def _with(model: nn.Module, use: Callable[[nn.Module], None]) -> nn.Module:
    use(model)
    return model


def their_loss(model: DebertaV2ForMaskedLM, batch: Batch) -> Tensor:
    return model(input_ids=batch.ids, attention_mask=batch.mask, labels=batch.labels).loss


def our_loss(model: WholeModel, batch: Batch) -> Tensor:
    """Of every objective the model has; those of masked and of replaced tokens with the weights of a recipe.

    Without padding there is no mask, as in training (``batch.without_full_masks``).
    """
    mask = batch.mask if batch.has_padding else None
    terms, _ = model(batch.ids, mask, batch.positions, batch.targets, sample_numbers=batch.numbers)
    loss_sum, count = terms["mlm_loss"]
    loss = loss_sum / count
    if "rtd_loss" in terms:
        loss_sum, count = terms["rtd_loss"]
        loss = loss + objective_of(REPLACED).loss_weights(REPLACED)["rtd_loss"] * loss_sum / count
    return loss


def check_equal(theirs: DebertaV2ForMaskedLM, ours: WholeModel, batch: Batch, *, tolerance: float) -> None:
    """Stop unless the losses and all gradients agree; ``ours`` has the weights of ``theirs`` and no dropout."""
    losses = their_loss(theirs, batch), our_loss(ours, batch)
    for loss in losses:
        loss.backward()
    expected, found = (float(loss.detach()) for loss in losses)
    gradients = {name: parameter.grad for name, parameter in theirs.named_parameters()}
    layers = theirs.config.num_hidden_layers
    names = mlm_names(ModelConfig(num_hidden_layers=layers, enhanced_mask_decoder=False))
    worst = max(
        float((parameter.grad - gradients[names[name]]).norm() / gradients[names[name]].norm())
        for name, parameter in ours.named_parameters()
        if names[name] in gradients
    )
    print(f"  loss {found:.6f}, transformers {expected:.6f}; largest relative gradient difference {worst:.1e}")
    if abs(expected - found) > 0.1 * tolerance * abs(expected) or worst > tolerance:
        raise SystemExit("the two models do not agree; no time is worth printing")
