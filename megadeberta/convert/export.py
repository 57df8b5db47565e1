"""``convert export``: a checkpoint of ours -> a folder that transformers loads."""

import json
import shutil
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from megadeberta.checkpoint.manifest import MANIFEST_NAME
from megadeberta.convert.hf_config import V2, HfLayout, ModelKind, choose_layout, to_hf_config
from megadeberta.convert.hf_weights import to_hugging_face
from megadeberta.convert.import_folder import read_hf_folder
from megadeberta.convert.model_card import write_model_card
from megadeberta.convert.names import RELATIVE_TABLE
from megadeberta.convert.published_folder import publish_folder
from megadeberta.convert.reload_check import OPT_IN_FILE, Finding, check_export, opt_in_source
from megadeberta.convert.source import SPM, ModelSource, load_weights
from megadeberta.convert.tensor_file import SAFETENSORS
from megadeberta.convert.tokenizer_json import write_tokenizer
from megadeberta.data.tokenizer import SentencePieceTokenizer
from megadeberta.errors import CheckpointError, ConfigError


def export_checkpoint(
    checkpoint: Path, out: Path, *, kind: ModelKind = ModelKind.MLM, overwrite: bool = False
) -> list[Finding]:
    """Write ``checkpoint`` as a Hugging Face folder; it appears under ``out`` only after it was loaded and compared.

    Args:
        checkpoint: see :func:`megadeberta.convert.source.load_weights`.
        out: a folder that is empty or does not exist.
        kind: with the prediction head, or the encoder alone under bare names.
        overwrite: replace an earlier export at ``out``.

    Returns:
        What the check found equal.

    Raises:
        CheckpointError: the checkpoint is not sound or has no tokenizer, or the check failed; nothing is written.
        ConfigError: ``out`` is in use, or inside a checkpoint.
        StorageError: the file system refused a write.
    """
    _check_place(out)
    source = load_weights(checkpoint)
    if source.tokenizer is None:
        raise CheckpointError(f"{source.folder / SPM}: is missing; put the tokenizer of these weights there")
    tokenizer = SentencePieceTokenizer.load(source.tokenizer)
    if tokenizer.vocab_size_needed > source.config.vocab_size:
        raise CheckpointError(
            f"{source.tokenizer}: needs {tokenizer.vocab_size_needed} rows with [MASK], the word table has "
            f"{source.config.vocab_size}; it is not the tokenizer of these weights"
        )
    layout = choose_layout(source.config, kind)
    findings: list[Finding] = []

    def fill(target: Path) -> None:
        _write_files(target, source, layout, num_tokens=tokenizer.vocab_size_needed)
        findings.append(_check_round_trip(target, source))
        findings.extend(check_export(target))

    publish_folder(out, fill, overwrite=overwrite)
    return findings


def _write_files(target: Path, source: ModelSource, layout: HfLayout, *, num_tokens: int) -> None:
    tensors = to_hugging_face(source.config, source.weights, layout)
    contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
    safetensors.torch.save_file(contiguous, target / SAFETENSORS, metadata={"format": "pt"})
    _write_json(target / "config.json", to_hf_config(source.config, layout))
    write_tokenizer(source.tokenizer, target, max_length=source.config.max_position_embeddings)
    shutil.copyfile(source.tokenizer, target / SPM)
    (target / "README.md").write_text(write_model_card(source, layout, num_tokens=num_tokens), encoding="utf-8")
    if layout.kind == ModelKind.MLM and source.config.enhanced_mask_decoder and layout.model_type == V2:
        (target / OPT_IN_FILE).write_bytes(opt_in_source())


def _check_round_trip(target: Path, source: ModelSource) -> Finding:
    """What is on disk, read back, is bit for bit what was to be exported."""
    imported = read_hf_folder(target)
    for name, tensor in imported.weights.items():
        first = 1 if name == RELATIVE_TABLE else 0  # row 0 of that table is a copy of row 1 in every export
        if not torch.equal(tensor[first:], source.weights[name][first:]):
            raise CheckpointError(f"{target}: {name} is not what {source.folder} holds; this is a bug, report it")
    is_bucketed = source.config.relative_attention and source.config.position_buckets > 0
    exception = ", but for row 0 of the distance table" if is_bucketed else ""
    return Finding(
        "weights on disk", f"{len(imported.weights)} tensors, bit for bit those of the checkpoint{exception}"
    )


def _check_place(out: Path) -> None:
    for parent in out.absolute().parents:
        if (parent / MANIFEST_NAME).is_file():
            raise ConfigError(
                f"{out} is inside the checkpoint {parent}, which would no longer match its manifest; choose a folder "
                "elsewhere"
            )


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
