"""transformers' model of a kind, with a fresh head, and its tokenizer."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn

from megadeberta.convert.quiet import quiet_transformers
from megadeberta.errors import CheckpointError, ConfigError
from megadeberta.finetune.kinds.kind import Kind
from megadeberta.finetune.settings import Point, Settings
from megadeberta.finetune.source import Start
from megadeberta.hf.switch import use_eager_attention, use_fast_attention

log = logging.getLogger(__name__)


def load_tokenizer(start: Start) -> Any:
    """The fast tokenizer of the folder.

    Raises:
        CheckpointError: transformers cannot load it, or it is slow and cannot say where tokens lie in a text.
    """
    with quiet_transformers():
        try:
            tokenizer = transformers.AutoTokenizer.from_pretrained(start.folder, local_files_only=True)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CheckpointError(f"{start.name}: transformers cannot load its tokenizer ({_line(error)})") from None
    if not tokenizer.is_fast:
        raise CheckpointError(f"{start.name}: {type(tokenizer).__name__} has no fast tokenizer; convert it first")
    # The length of a sequence is ours to check.
    tokenizer.model_max_length = 10**9
    # Of our models, and of DeBERTa's published ones, none reads token types.
    names = ["input_ids", "attention_mask"]
    tokenizer.model_input_names = names + (["token_type_ids"] if start.config.get("type_vocab_size") else [])
    return tokenizer


def load_model(start: Start, kind: Kind, labels: Sequence[str], *, point: Point, settings: Settings) -> Any:
    """The model of the folder with a head of random weights from torch's generator, in fp32.

    Raises:
        CheckpointError: transformers has no such class, or misses weights of the encoder.
        ConfigError: the attention asked for does not exist or does not run here.
    """
    changes = kind.config(labels)
    if point.dropout is not None and kind.dropout_setting is not None:
        changes[kind.dropout_setting] = point.dropout
    model = _load(start.folder, kind, name=start.name, **changes)
    return model if settings.attention == "eager" else use_fast_attention(model, settings.attention)


def _load(folder: Path, kind: Kind, *, name: str, **changes: Any) -> Any:
    with quiet_transformers():
        try:
            config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
            config.update(changes)
            model, info = getattr(transformers, kind.model_class).from_pretrained(
                folder,
                config=config,
                local_files_only=True,
                trust_remote_code=False,
                dtype=torch.float32,
                output_loading_info=True,
            )
        except (OSError, ValueError, RuntimeError, KeyError) as error:
            raise CheckpointError(f"{name}: {kind.model_class} cannot load it ({_line(error)})") from None
    missing = sorted(key for key in info["missing_keys"] if key.startswith(f"{model.base_model_prefix}."))
    if missing:
        raise CheckpointError(f"{name}: misses {len(missing)} tensors of the encoder, first {missing[0]}")
    return model


def check_saved(folder: Path, kind: Kind, model: nn.Module, batch: dict[str, torch.Tensor]) -> None:
    """Load what was saved, and compare its outputs with the model's, both with transformers' own attention.

    Raises:
        CheckpointError: they differ by a bit.
    """
    loaded = _load(folder, kind, name=str(folder)).eval().to(next(model.parameters()).device)
    eager = use_eager_attention(model).eval()
    with torch.no_grad():
        ours, theirs = (kind.logits(one(**batch), batch) for one in (eager, loaded))
    if not torch.equal(ours.float(), theirs.float()):
        raise CheckpointError(
            f"{folder}: transformers computes other outputs than were trained; this is a bug, report it"
        )


def check_length(start: Start, length: int) -> None:
    """Refuse sequences that the model has no positions for.

    Raises:
        ConfigError: names the most.
    """
    longest = start.longest()
    if length < 8 or (longest is not None and length > longest):
        most = f"{longest}, the absolute positions of {start.name}" if longest else "any number"
        raise ConfigError(f"--length {length} is not between 8 and {most}")


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
