"""Does transformers load an export whole, and compute what we compute?

Shapes: B batch · L length · V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

from megadeberta.config.model import ModelConfig
from megadeberta.config.set_files import TOKENIZER_JSON, tokenizer_in
from megadeberta.convert.formats.family import ExportTarget, Family, ModelKind, OptIn
from megadeberta.convert.formats.places import MICROSOFT_CONFIG
from megadeberta.convert.formats.read_folder import ImportedModel, read_hf_folder
from megadeberta.convert.quiet import quiet_transformers
from megadeberta.convert.tokenizer.same_ids import ODD_TEXTS, check_same_ids
from megadeberta.data.tokenizer import load_tokenizer
from megadeberta.errors import CheckpointError
from megadeberta.layers.catalogue import token_model_layers
from megadeberta.model.whole import WholeModel

TOLERANCE = 1e-5
"""Relative to the largest value, or absolute below one: fp32 through tens of layers of two implementations."""
_BATCH, _LENGTH = 2, 24


@dataclass(frozen=True)
class Finding:
    """One comparison that held."""

    what: str
    detail: str


def check_export(folder: Path, *, texts: Sequence[str] = ()) -> list[Finding]:
    """Load an export through transformers and compare it with our own model on the same file.

    Code inside the folder is never run: the opt-in class is this package's, and the folder's copy must equal it.

    Args:
        texts: to compare the tokenizers on, besides odd ones.

    Raises:
        CheckpointError: missing or unexpected tensors, other outputs, or other token ids.
    """
    imported = read_hf_folder(folder)
    config, family = imported.config, imported.family
    is_microsoft = (folder / MICROSOFT_CONFIG).is_file()
    # transformers builds the head of Microsoft's files as H -> H.
    has_head_class = not is_microsoft or config.embedding_width == config.hidden_size
    if imported.has_head and has_head_class:
        model = _load(transformers.AutoModelForMaskedLM, folder)
        findings = [_compare_backbone(folder, imported, model.base_model)]
        if not config.enhanced_mask_decoder:
            findings.append(_compare_logits(folder, imported, model))
        elif family.opt_in is not None:
            if not is_microsoft:
                _check_opt_in_file(folder, family.opt_in)
            findings.append(_compare_logits(folder, imported, _load(family.opt_in.load_class(), folder)))
    else:
        findings = [_compare_backbone(folder, imported, _load(transformers.AutoModel, folder, encoder_of=family))]
    if (folder / TOKENIZER_JSON).is_file():
        findings.append(_check_tokenizer(folder, texts))
    return findings


def load_export(folder: Path, target: ExportTarget, config: ModelConfig) -> Any:
    """transformers' model of a finished export, with the mask decoder of this package where it has one.

    Raises:
        CheckpointError: transformers misses tensors, or has no place for some.
    """
    if target.kind != ModelKind.MLM:
        return _load(transformers.AutoModel, folder, encoder_of=target.family)
    opt_in = target.carried(config)
    return _load(transformers.AutoModelForMaskedLM if opt_in is None else opt_in.load_class(), folder)


def _own_model(imported: ImportedModel) -> WholeModel:
    """Ours; what a backbone's folder lacks (the head, absolute positions) keeps its random values and is not read."""
    model = WholeModel(token_model_layers(imported.config)).eval()
    model.load_state_dict(imported.weights, strict=False)
    return model


def _compare_backbone(folder: Path, imported: ImportedModel, theirs: torch.nn.Module) -> Finding:
    ids, mask = _batch(imported.config)
    with torch.no_grad():
        ours = _own_model(imported).encode(ids, mask)
        other = theirs(input_ids=ids, attention_mask=mask)[0]
    return _compare(ours, other, mask, f"{type(theirs).__name__} states", folder)


def _compare_logits(folder: Path, imported: ImportedModel, theirs: torch.nn.Module) -> Finding:
    ids, mask = _batch(imported.config)
    with torch.no_grad():
        ours = _own_model(imported).mlm_logits(ids, mask)
        other = theirs(input_ids=ids, attention_mask=mask).logits
    return _compare(ours, other, mask, f"{type(theirs).__name__} logits", folder)


def _check_opt_in_file(folder: Path, opt_in: OptIn) -> None:
    path = folder / opt_in.file_name
    if not path.is_file() or path.read_bytes() != opt_in.source():
        raise CheckpointError(f"{path}: is missing or is not this megadeberta's; export the model again")


def _load(model_class: Any, folder: Path, *, encoder_of: Family | None = None) -> Any:
    """The model; nothing may be missing and nothing unexpected.

    Args:
        encoder_of: the class is this family's encoder, which has no use for heads and may have tensors of its own.
    """
    with quiet_transformers():
        try:
            model, info = model_class.from_pretrained(
                folder, output_loading_info=True, local_files_only=True, trust_remote_code=False, dtype=torch.float32
            )
        except (OSError, ValueError, RuntimeError, KeyError) as error:
            raise CheckpointError(f"{folder}: transformers cannot load it: {error}") from error
    found = {kind: sorted(map(str, names)) for kind, names in info.items()}
    if encoder_of is not None:
        found["unexpected_keys"] = [name for name in found["unexpected_keys"] if not _is_of_a_head(name, encoder_of)]
        found["missing_keys"] = [n for n in found["missing_keys"] if not n.startswith(encoder_of.newly_drawn)]
    problems = {kind: names for kind, names in found.items() if names}
    if problems:
        kind, names = next(iter(problems.items()))
        raise CheckpointError(
            f"{folder}: transformers reports {len(names)} {kind.replace('_', ' ')} in {type(model).__name__}, "
            f"first {names[0]}"
        )
    return model.eval()


def _is_of_a_head(name: str, family: Family) -> bool:
    """Whether a folder's tensor belongs to a head, or to what a discriminator adds to its generator's tables."""
    heads = {theirs for names in (*family.mlm_heads, *family.rtd_heads) for theirs in names.values()}
    return name in heads or name.endswith("_embeddings._weight")


def _batch(config: ModelConfig) -> tuple[Tensor, Tensor]:
    """Random ids ``[B, L]`` and a mask whose second row is padded; the same at every call."""
    length = min(_LENGTH, config.max_position_embeddings)
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(1, config.vocab_size, (_BATCH, length), generator=generator)
    mask = torch.ones_like(ids)
    mask[1, length * 2 // 3 :] = 0
    return ids * mask, mask


def _compare(ours: Tensor, theirs: Tensor, mask: Tensor, what: str, folder: Path) -> Finding:
    real = mask.bool()
    difference = (ours - theirs)[real].abs().max().item()
    allowed = TOLERANCE * max(1.0, ours[real].abs().max().item())
    if not difference <= allowed:
        raise CheckpointError(f"{folder}: {what} differ from ours by {difference:.1e}, more than {allowed:.1e}")
    return Finding(what, f"equal to ours within {difference:.1e}; nothing missing, nothing unexpected")


def _check_tokenizer(folder: Path, texts: Sequence[str]) -> Finding:
    reference = load_tokenizer(tokenizer_in(folder))
    with quiet_transformers():
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        exceptions = check_same_ids(reference, tokenizer, texts, str(folder))
    of_run = f" and {len(texts)} documents of the run" if texts else ""
    detail = f"ids of {reference.path.name} on {len(ODD_TEXTS)} odd texts{of_run}{exceptions}"
    return Finding(f"AutoTokenizer ({type(tokenizer).__name__})", detail)
