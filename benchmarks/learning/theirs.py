"""The outside reference: transformers' DebertaV2ForMaskedLM on the very batches, masks and schedule of our runs.

Shapes: B batch · L length · Q target slots · V vocabulary.
"""

import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from learning.plan import Run
from megadeberta.batch import Batch
from megadeberta.config.schedule import learning_rate_factor
from megadeberta.config.training import OptimizerConfig
from megadeberta.convert.formats.config_json import to_config_json
from megadeberta.convert.formats.families import choose_target
from megadeberta.convert.formats.family import ModelKind
from megadeberta.convert.tokenizer.tokenizer_json import write_tokenizer
from megadeberta.data.loader import training_batches, validation_batches
from megadeberta.preflight.run import PreparedRun, prepare_run


def train(run: Run, tokens: Path, folder: Path) -> dict[str, Any]:
    """Train transformers' model with the settings of ``run``, and save it into ``folder``.

    The recipe must have no mask decoder, as transformers has none.
    """
    from transformers import DebertaV2Config, DebertaV2ForMaskedLM

    recipe = run.write_recipe(folder, tokens)
    prepared = prepare_run(recipe, [], world_size=1)
    config = prepared.config.model
    torch.set_num_threads(1)
    torch.manual_seed(run.seed)
    started = time.process_time()
    target = choose_target(config, ModelKind.MLM)
    model = DebertaV2ForMaskedLM(DebertaV2Config(**to_config_json(config, target)))
    curve = _loop(model, prepared, clip=run.recipe["deepspeed"]["gradient_clipping"])
    seconds = time.process_time() - started
    model.save_pretrained(folder)
    tokenizer = Path(prepared.config.data.tokenizer)
    write_tokenizer(tokenizer, folder, max_length=config.max_position_embeddings)
    (folder / tokenizer.name).write_bytes(tokenizer.read_bytes())
    return {"curve": curve, "cpu_seconds": round(seconds, 1)}


def _loop(model: nn.Module, prepared: PreparedRun, *, clip: float) -> list[dict[str, float]]:
    """Every step of the run, with gradients clipped to a norm of ``clip``; the validation curve."""
    config, training = prepared.config, prepared.config.training
    data = (config.data, config.objective)
    sizes: dict[str, Any] = {"algebra": prepared.algebra, "data_rank": 0}
    held_out = validation_batches(*data, eval_sequences=training.eval_sequences, **sizes)
    optimizer, curve = build_optimizer(model, config.optimizer), []
    sizes |= {"seed": training.seed, "start_step": 0, "total_steps": training.steps}
    with training_batches(*data, **sizes) as batches:
        for item in batches:
            factor = learning_rate_factor(config.schedule, step=item.step, total_steps=training.steps)
            for group in optimizer.param_groups:
                group["lr"] = config.optimizer.lr * factor
            model.train()
            mean_loss(model, item.micro_batches).backward()
            nn.utils.clip_grad_norm_(model.parameters(), clip)
            optimizer.step()
            optimizer.zero_grad()
            if (item.step + 1) % training.eval_interval == 0 or item.step + 1 == training.steps:
                model.eval()
                with torch.no_grad():
                    curve.append({"step": item.step + 1, "valid_mlm_loss": float(mean_loss(model, held_out))})
    return curve


def mean_loss(model: Any, batches: Iterable[Batch]) -> Tensor:
    """Of all targets of the batches, each weighing the same."""
    total, count = torch.zeros(()), 0
    for batch in batches:
        labels = batch["masked_labels"]  # [B, Q], 0: an empty slot
        is_target = labels > 0
        rows = torch.arange(len(labels))[:, None].expand_as(labels)[is_target]
        hidden = _hidden_states(model.deberta, batch)
        table = model.deberta.embeddings.word_embeddings
        logits = model.lm_predictions(hidden[rows, batch["masked_positions"][is_target]], table)  # [targets, V]
        total = total + functional.cross_entropy(logits, labels[is_target], reduction="sum")
        count += int(is_target.sum())
    return total / count


def _hidden_states(backbone: Any, batch: Batch) -> Tensor:
    """``[B, L, D]``; tokens of packed documents attend within their own document alone."""
    ids, mask = batch["input_ids"], batch["attention_mask"]
    if "document_starts" in batch:
        starts, real = batch["document_starts"], mask.bool()
        pairs = (starts[:, :, None] == starts[:, None, :]) & real[:, :, None] & real[:, None, :]  # [B, L, L]
        mask = pairs.long()
    embedded = backbone.embeddings(input_ids=ids, mask=batch["attention_mask"])
    states: Tensor = backbone.encoder(embedded, mask).last_hidden_state
    return states


def build_optimizer(model: nn.Module, settings: OptimizerConfig) -> torch.optim.Optimizer:
    """AdamW; biases and LayerNorm weights are not decayed, as in our runs."""
    groups: dict[bool, list[nn.Parameter]] = {True: [], False: []}
    for name, parameter in model.named_parameters():
        groups[not name.endswith((".bias", "LayerNorm.weight"))].append(parameter)
    return torch.optim.AdamW(
        [
            {"params": groups[True], "weight_decay": settings.weight_decay},
            {"params": groups[False], "weight_decay": 0.0},
        ],
        lr=settings.lr,
        betas=(settings.beta1, settings.beta2),
        eps=settings.eps,
        fused=True,
    )
