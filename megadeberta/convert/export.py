"""``convert export``: a checkpoint of ours -> a folder that transformers or microsoft/DeBERTa loads."""

from pathlib import Path

import safetensors.torch
import torch

from megadeberta.convert.card_facts import CardFacts
from megadeberta.convert.export_checks import check_export, choose_kind
from megadeberta.convert.formats.config_json import to_config_json, to_model_config_json
from megadeberta.convert.formats.export_tensors import export_tensors, table_rows
from megadeberta.convert.formats.families import choose_target
from megadeberta.convert.formats.family import ExportTarget, FileFormat, ModelKind
from megadeberta.convert.formats.names import RELATIVE_TABLE
from megadeberta.convert.formats.places import HF_CONFIG, MICROSOFT_CONFIG
from megadeberta.convert.formats.read_folder import read_discriminator, read_hf_folder
from megadeberta.convert.model_card import describe_part, microsoft_decoder_note, write_model_card
from megadeberta.convert.onnx_file import write_onnx
from megadeberta.convert.published_folder import publish_folder, write_json
from megadeberta.convert.reload_check import Finding
from megadeberta.convert.reload_check import check_export as compare_export
from megadeberta.convert.tokenizer.same_ids import texts_of_run
from megadeberta.convert.tokenizer.tokenizer_json import write_tokenizer
from megadeberta.data.tokenizer import load_tokenizer
from megadeberta.errors import CheckpointError
from megadeberta.weights.place import PICKLED
from megadeberta.weights.safetensors_file import SAFETENSORS
from megadeberta.weights.source import ModelSource, load_weights


def export_checkpoint(
    checkpoint: Path,
    out: Path,
    *,
    kind: ModelKind | None = None,
    file_format: FileFormat = FileFormat.HUGGING_FACE,
    facts: CardFacts = CardFacts(),
    onnx: bool = False,
    overwrite: bool = False,
) -> list[Finding]:
    """Write ``checkpoint`` as a folder that others load; it appears only after it was loaded and compared.

    Args:
        checkpoint: see :func:`megadeberta.weights.source.load_weights`.
        out: a folder that is empty or does not exist.
        kind: None: the discriminator where there is one, else with the prediction head.
        file_format: safetensors and a tokenizer for transformers; or pickled tensors, for microsoft/DeBERTa to go on.
        facts: what the card says beyond the run.
        onnx: write ``model.onnx`` as well, see :func:`megadeberta.convert.onnx_file.write_onnx`.
        overwrite: replace an earlier export at ``out``.

    Returns: what was exported, and what the check found equal.

    Raises:
        CheckpointError: the checkpoint is not sound or has no tokenizer, or the check failed; nothing is written.
        ConfigError: ``out`` is in use, or inside a checkpoint.
        StorageError: the file system refused a write.
    """
    check_export(checkpoint, out, kind=kind, file_format=file_format, onnx=onnx, overwrite=overwrite)
    loaded = load_weights(checkpoint)
    kind = choose_kind(loaded.folder, loaded.config, loaded.objective, kind)
    source = _source_of(loaded, kind)
    tokenizer = source.checked_tokenizer()
    texts = texts_of_run(source, load_tokenizer(tokenizer))
    target = choose_target(source.config, kind, file_format)
    note = microsoft_decoder_note(source, target)
    findings = [Finding("exported", _what(loaded, source)), *([Finding("BEWARE", note)] if note else [])]

    def fill(folder: Path) -> None:
        _write_files(folder, source, target, facts, tokenizer=tokenizer)
        findings.append(_check_round_trip(folder, source, kind))
        findings.extend(compare_export(folder, texts=texts))
        if onnx:
            findings.append(write_onnx(folder, target, source.config))

    publish_folder(out, fill, overwrite=overwrite)
    return findings


def _what(loaded: ModelSource, source: ModelSource) -> str:
    """Which part it is, and how to get the others."""
    others = [f"--model {part}" for part in loaded.parts if part != source.part]
    return describe_part(source) + (f"; {', '.join(others)} for the other part" if others else "")


def _source_of(loaded: ModelSource, kind: ModelKind) -> ModelSource:
    if kind == ModelKind.DISCRIMINATOR:
        return loaded.discriminator_model()
    return loaded.token_model() if kind == ModelKind.MLM else loaded.encoder_model()


def _write_files(folder: Path, source: ModelSource, target: ExportTarget, facts: CardFacts, *, tokenizer: Path) -> None:
    found = export_tensors(source.config, source.weights, target)
    tensors = {name: tensor.contiguous() for name, tensor in found.items()}
    write_json(folder / HF_CONFIG, to_config_json(source.config, target))
    if target.file_format == FileFormat.MICROSOFT:
        torch.save(tensors, folder / PICKLED)
        write_json(folder / MICROSOFT_CONFIG, to_model_config_json(source.config, target))
    else:
        safetensors.torch.save_file(tensors, folder / SAFETENSORS, metadata={"format": "pt"})
        write_tokenizer(tokenizer, folder, max_length=source.config.max_position_embeddings)
        if (opt_in := target.carried(source.config)) is not None:
            (folder / opt_in.file_name).write_bytes(opt_in.source())
    vocabulary = load_tokenizer(tokenizer)
    (folder / vocabulary.file_name).write_bytes(vocabulary.content)
    num_tokens = vocabulary.vocab_size_needed
    (folder / "README.md").write_text(write_model_card(source, target, facts, num_tokens=num_tokens), encoding="utf-8")


def _check_round_trip(target: Path, source: ModelSource, kind: ModelKind) -> Finding:
    """What is on disk, read back, is bit for bit what was to be exported."""
    imported = read_discriminator(target) if kind == ModelKind.DISCRIMINATOR else read_hf_folder(target)
    found = imported.weights | imported.differences
    rows = table_rows(source.config) if source.config.relative_attention else []
    for name, tensor in found.items():
        expected = source.weights[name][rows] if name == RELATIVE_TABLE else source.weights[name]
        if not torch.equal(tensor, expected):
            raise CheckpointError(f"{target}: {name} is not what {source.folder} holds; this is a bug, report it")
    copies = sum(row != copied for row, copied in enumerate(rows))
    exception = f"; rows of the distance table that nothing reads, copied from others: {copies}" if copies else ""
    return Finding("weights on disk", f"{len(found)} tensors, bit for bit those of the checkpoint{exception}")
