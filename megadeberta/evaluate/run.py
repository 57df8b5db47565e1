"""`megadeberta evaluate`: weights, what to score them on, and the scores that their objective has."""

from pathlib import Path

import torch
from torch import Tensor

from megadeberta.config.data import DataConfig
from megadeberta.config.deepspeed_block import BatchAlgebra
from megadeberta.convert.any_model import load_model
from megadeberta.data.check import check_data
from megadeberta.data.loader import validation_batches
from megadeberta.data.tokenizer import VocabularyTokenizer, load_tokenizer
from megadeberta.errors import DataError
from megadeberta.evaluate.inputs import data_section, nothing_to_score, read_text, sequence_length
from megadeberta.evaluate.sequences import Scores, score_by_mask_kind, score_terms
from megadeberta.evaluate.texts import score_left_to_right, score_pseudo_perplexity
from megadeberta.layers.objectives import list_layers, objective_of
from megadeberta.model.dropout import set_sites
from megadeberta.model.whole import WholeModel
from megadeberta.weights.source import ModelSource

_SEED = 1234
"""Of the generator's samples, for weights that are of no run."""


def evaluate(
    path: Path,
    *,
    shard: Path | None = None,
    text: Path | None = None,
    sequences: int = 512,
    length: int | None = None,
    batch_size: int = 16,
) -> Scores:
    """``score`` of the weights at ``path`` (:func:`megadeberta.convert.any_model.load_model`)."""
    return score(load_model(path), shard=shard, text=text, sequences=sequences, length=length, batch_size=batch_size)


def score(
    source: ModelSource,
    *,
    shard: Path | None = None,
    text: Path | None = None,
    sequences: int = 512,
    length: int | None = None,
    batch_size: int = 16,
) -> Scores:
    """Scores of weights; without ``shard`` and ``text``, on the validation shards of their run.

    Args:
        shard: prefix of a token file. Masks are those of a run's own validation, so its loss comes out again.
        text: a UTF-8 file.
        sequences: at most this many of the shard.
        length: tokens of a sequence; as in the run if not given.

    Raises:
        CheckpointError, ConfigError, DataError: no tokenizer, nothing to score on, or it does not fit.
    """
    tokenizer_file = source.checked_tokenizer()
    recipe = source.run.get("config", {})
    data = data_section(recipe, tokenizer_file, shard=shard, length=sequence_length(source.config, recipe, length))
    tokenizer = load_tokenizer(tokenizer_file)
    model = _model(source)
    scores: Scores = {}
    if data.valid is not None and (shard is not None or text is None):
        for name, prefix in data.valid_prefixes.items():
            of_name = data.model_copy(update={"train": prefix, "valid": prefix})
            check_data(of_name, source.config.vocab_size)
            found = _score_shard(model, source, of_name, mask_id=tokenizer.mask_id, rows=(sequences, batch_size))
            scores |= {f"{key} ({name})" if name else key: value for key, value in found.items()}
    elif text is None:
        raise nothing_to_score(source.folder)
    if text is not None:
        scores |= _score_text(text, model, source, tokenizer, length=data.sequence_length, batch_size=batch_size)
    return scores


def _score_text(
    path: Path,
    model: WholeModel,
    source: ModelSource,
    tokenizer: VocabularyTokenizer,
    *,
    length: int,
    batch_size: int,
) -> Scores:
    scores: Scores = {}
    content, ids = _read_text(path, tokenizer)
    losses = _losses(source)
    marks = (tokenizer.cls_id, tokenizer.sep_id)
    if "ar_loss" in losses:
        scores |= score_left_to_right(model, content, ids, marks=marks, length=length)
    if "mlm_loss" in losses:
        scores |= score_pseudo_perplexity(
            model, content, ids, mask_id=tokenizer.mask_id, marks=marks, length=length, batch_size=batch_size
        )
    return scores


def _score_shard(
    model: WholeModel, source: ModelSource, data: DataConfig, *, mask_id: int, rows: tuple[int, int]
) -> Scores:
    """``rows``: sequences in all, sequences at a time."""
    sequences, batch_size = rows
    algebra = BatchAlgebra(batch_size, batch_size, 1, 1)
    found = validation_batches(data, source.objective, eval_sequences=sequences, algebra=algebra, data_rank=0)
    device = next(model.parameters()).device
    batches: list[dict[str, Tensor]] = [{name: t.to(device) for name, t in batch.items()} for batch in found]
    scores: Scores = {}
    losses = _losses(source)
    if "mlm_loss" in losses:
        scores |= score_by_mask_kind(model, batches, mask_id=mask_id)
    if losses != {"mlm_loss"}:
        known = scores.keys()
        scores |= {name: value for name, value in score_terms(model, batches).items() if name not in known}
    return scores


def _losses(source: ModelSource) -> set[str]:
    """Names of the loss terms that the weights were trained on."""
    return set(objective_of(source.objective).loss_weights(source.objective))


def _model(source: ModelSource) -> WholeModel:
    model = WholeModel(list_layers(source.config, source.objective)).eval()
    model.load_state_dict(source.weights, strict=False)  # strict would want tied tables twice
    # The generator samples as in the run's own validation, so that its losses come out again.
    set_sites(model.named_modules(), seed=source.run["config"]["training"]["seed"] if source.run else _SEED)
    return model.to("cuda" if torch.cuda.is_available() else "cpu")


def _read_text(path: Path, tokenizer: VocabularyTokenizer) -> tuple[str, list[int]]:
    content = read_text(path)
    ids = tokenizer.encode(content)
    if not ids:
        raise DataError(f"{path}: holds no text; nothing can be scored")
    return content, ids
