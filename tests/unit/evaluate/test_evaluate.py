"""Scores against direct computation, and the command on checkpoints of every objective."""

import math
from pathlib import Path

import pytest
import torch
from torch.nn import functional
from typer.testing import CliRunner

from megadeberta.cli import app
from megadeberta.config.data import DataConfig
from megadeberta.config.deepspeed_block import BatchAlgebra
from megadeberta.config.objective import ObjectiveConfig
from megadeberta.convert.export import export_checkpoint
from megadeberta.convert.fill_mask import predict_masks
from megadeberta.convert.formats.family import ModelKind
from megadeberta.convert.import_parts import import_parts
from megadeberta.data.loader import validation_batches
from megadeberta.data.shard_writer import ShardWriter
from megadeberta.data.tokenizer import SentencePieceTokenizer
from megadeberta.errors import CheckpointError, ConfigError, DataError
from megadeberta.evaluate.run import evaluate
from megadeberta.evaluate.sequences import score_by_mask_kind, score_terms
from megadeberta.evaluate.texts import score_left_to_right, score_pseudo_perplexity
from megadeberta.layers.objectives import list_layers
from megadeberta.model.dropout import set_sites
from megadeberta.model.whole import WholeModel
from megadeberta.weights.source import load_weights
from tests.data_fixtures import SOTU
from tests.unit.convert.small_models import small_config, small_model, write_checkpoint, write_weights_folder

MASK_ID = 50
OBJECTIVES = {
    "mlm": ObjectiveConfig(),
    "rtd": ObjectiveConfig(name="rtd", rtd={"generator_layers": 2}),
    "ar": ObjectiveConfig(name="ar"),
    "mlm_ar": ObjectiveConfig(name="mlm_ar"),
}


@pytest.fixture(scope="module")
def model() -> WholeModel:
    return small_model(small_config(vocab_size=60)).double()


@pytest.fixture(scope="module")
def shard(tmp_path_factory: pytest.TempPathFactory, spm: Path) -> Path:
    tokenizer = SentencePieceTokenizer.load(spm)
    prefix = tmp_path_factory.mktemp("shard") / "valid"
    with ShardWriter(prefix, dtype=torch.zeros(1, dtype=torch.int32).numpy().dtype) as writer:
        for line in SOTU.read_text(encoding="utf-8").splitlines()[:60]:
            writer.add_document(tokenizer.encode(line))
        writer.commit(tokenizer_sha256=tokenizer.sha256, tokenizer_pieces=tokenizer.num_pieces)
    return prefix


def _checkpoint(folder: Path, name: str, spm: Path, shard: Path, *, seed: int = 1234) -> Path:
    objective, config = OBJECTIVES[name], small_config()
    made = small_model(config, objective=objective)
    data = {"train": str(shard), "valid": str(shard), "tokenizer": str(spm), "sequence_length": 32}
    sections = {"data": data, "objective": objective.model_dump(mode="json"), "training": {"steps": 9, "seed": seed}}
    write_checkpoint(folder / name, made, config, spm, step=5, **sections)
    return folder / name


def test_mask_kinds_are_scored_apart(model: WholeModel) -> None:
    ids = torch.tensor([[1, MASK_ID, 7, 9, 11, 2], [1, 5, MASK_ID, 9, 2, 0]])
    batch = {
        "input_ids": ids,
        "attention_mask": (ids != 0).long(),
        "masked_positions": torch.tensor([[1, 2, 4], [2, 0, 0]]),
        "masked_labels": torch.tensor([[6, 7, 12], [8, 0, 0]]),  # [MASK], kept, random; [MASK]
    }
    scores = score_by_mask_kind(model, [batch, batch], mask_id=MASK_ID)
    logits = model.mlm_logits(ids, batch["attention_mask"], batch["masked_positions"])
    losses = functional.cross_entropy(logits.flatten(0, 1).float(), batch["masked_labels"].flatten(), reduction="none")
    masked, kept, random, other = losses[[0, 1, 2, 3]].tolist()
    assert scores["mlm_loss"] == pytest.approx((masked + kept + random + other) / 4)
    assert scores["mlm_loss [MASK]"] == pytest.approx((masked + other) / 2)
    assert scores["mlm_loss kept"] == pytest.approx(kept)
    assert scores["mlm_loss random"] == pytest.approx(random)
    assert scores["mlm_perplexity kept"] == pytest.approx(math.exp(kept))
    assert [scores[f"mlm_targets{kind}"] for kind in ("", " [MASK]", " kept", " random")] == [8, 4, 2, 2]


def test_pseudo_perplexity_masks_every_token_alone(model: WholeModel) -> None:
    ids = [7, 9, 11, 13, 15, 17, 19]
    scores = score_pseudo_perplexity(model, "a b c", ids, mask_id=MASK_ID, length=6, batch_size=3)
    loss = 0.0
    for piece in ([7, 9, 11, 13], [15, 17, 19]):
        for place in range(len(piece)):
            row = torch.tensor([[1, *piece, 2]])
            row[0, place + 1] = MASK_ID
            logits = model.mlm_logits(row, torch.ones_like(row), torch.tensor([[place + 1]]))
            loss -= float(logits.detach().log_softmax(-1)[0, 0, piece[place]])
    assert scores["pseudo_perplexity"] == pytest.approx(math.exp(loss / 7), rel=1e-9)
    assert scores["pseudo_perplexity a word"] == pytest.approx(math.exp(loss / 3), rel=1e-9)
    assert scores["pseudo_bits a byte"] == pytest.approx(loss / 5 / math.log(2), rel=1e-9)


def test_left_to_right_perplexity_reads_only_what_came_before(model: WholeModel) -> None:
    ids = [7, 9, 11, 13, 15]
    scores = score_left_to_right(model, "a b", ids, length=5)
    loss = 0.0
    for piece in ([7, 9, 11], [13, 15]):
        for place, wanted in enumerate(piece):
            row = torch.tensor([[1, *piece[:place]]])  # what came before, and nothing else
            rule = {"prefix_lengths": torch.tensor([0])}
            logits = model.mlm_logits(row, torch.ones_like(row), torch.tensor([[place]]), **rule)
            loss -= float(logits.detach().log_softmax(-1)[0, 0, wanted])
    assert scores["ar_perplexity"] == pytest.approx(math.exp(loss / 5), rel=1e-9)
    assert scores["ar_tokens"] == 5


WANTED = {
    "mlm": ({"mlm_loss", "mlm_accuracy kept", "mlm_perplexity [MASK]", "pseudo_perplexity"}, {"rtd_f1", "ar_loss"}),
    "rtd": ({"mlm_loss", "rtd_loss", "rtd_accuracy", "rtd_f1", "pseudo_perplexity"}, {"ar_loss", "mlm_loss kept"}),
    "ar": ({"ar_loss", "ar_perplexity", "ar_accuracy", "ar_bits a byte"}, {"mlm_loss", "pseudo_perplexity"}),
    "mlm_ar": ({"mlm_loss", "ar_loss", "ar_perplexity", "pseudo_perplexity"}, {"rtd_f1"}),
}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_scores_are_those_of_the_objective(name: str, tmp_path: Path, spm: Path, shard: Path) -> None:
    run = _checkpoint(tmp_path, name, spm, shard)
    text = tmp_path / "text.txt"
    text.write_text("The state of the Union is strong.\n", encoding="utf-8")
    scores = evaluate(run, text=text, shard=shard, sequences=12, batch_size=5)
    present, absent = WANTED[name]
    assert present <= scores.keys() and not absent & scores.keys()
    assert scores == pytest.approx(evaluate(run, text=text, shard=shard, sequences=12, batch_size=12), rel=1e-5)
    done = CliRunner().invoke(app, ["evaluate", str(run), "--sequences", "4"])
    assert done.exit_code == 0, done.output
    assert {"mlm": "mlm perplexity", "rtd": "rtd f1", "ar": "ar perplexity", "mlm_ar": "ar loss"}[name] in done.output


def test_f1_is_that_of_precision_and_recall(tmp_path: Path, spm: Path, shard: Path) -> None:
    scores = evaluate(_checkpoint(tmp_path, "rtd", spm, shard), sequences=20)
    p, r = scores["rtd_precision"], scores["rtd_recall"]
    assert scores["rtd_f1"] == pytest.approx(2 * p * r / (p + r))
    assert 0.1 < scores["sampled_rate"] < 0.2 and scores["replaced_rate"] <= scores["sampled_rate"]


def test_parts_of_a_run_are_models_that_export_and_fill_masks(tmp_path: Path, spm: Path, shard: Path) -> None:
    run = _checkpoint(tmp_path, "rtd", spm, shard)
    source = load_weights(run)
    assert source.token_model().config.num_hidden_layers == 2
    assert source.encoder_model().config.num_hidden_layers == 3
    assert len(predict_masks(run, "The [MASK] of the Union", top_k=3)[0]) == 3
    for kind in (ModelKind.MLM, ModelKind.BACKBONE):
        export_checkpoint(run, tmp_path / f"exported-{kind.value}", kind=kind)
    again = load_weights(run).encoder_model().weights
    table = source.weights["generator.embeddings.word_embeddings.weight"]
    delta = source.weights["discriminator.embeddings.word_embeddings.delta"]
    assert torch.equal(again["embeddings.word_embeddings.weight"], table + delta)


def test_the_generator_samples_as_in_the_validation_of_the_run(tmp_path: Path, spm: Path, shard: Path) -> None:
    run = _checkpoint(tmp_path, "rtd", spm, shard, seed=77)
    source = load_weights(run)
    model = WholeModel(list_layers(source.config, source.objective)).eval()
    model.load_state_dict(source.weights, strict=False)
    data = DataConfig.model_validate({**source.run["config"]["data"], "loader_workers": 0})
    algebra = BatchAlgebra(4, 4, 1, 1)
    batches = validation_batches(data, source.objective, eval_sequences=12, algebra=algebra, data_rank=0)
    found = evaluate(run, sequences=12, batch_size=4)
    losses = {}
    for seed in (77, 78):
        set_sites(model.named_modules(), seed=seed)
        losses[seed] = score_terms(model, batches)["rtd_loss"]
    assert found["rtd_loss"] == pytest.approx(losses[77], rel=1e-6)
    assert abs(found["rtd_loss"] - losses[78]) > 1e-5


def test_parts_that_were_exported_and_imported_score_as_their_run(tmp_path: Path, spm: Path, shard: Path) -> None:
    run = _checkpoint(tmp_path, "rtd", spm, shard)
    for kind in (ModelKind.MLM, ModelKind.DISCRIMINATOR):
        export_checkpoint(run, tmp_path / kind, kind=kind)
    import_parts(tmp_path / "discriminator", tmp_path / "imported", generator=tmp_path / "mlm")
    found, expected = (evaluate(path, shard=shard, sequences=12) for path in (tmp_path / "imported", run))
    assert found == pytest.approx(expected, rel=1e-6) and found["rtd_loss"] > 0


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"length": 4}, ConfigError, "--length 4 is below 8"),
        ({"length": 64}, ConfigError, "--length 64 is more than the 32 absolute positions"),
        ({"text": Path("missing.txt")}, DataError, r"missing.txt: cannot be read: No such file"),
        ({"text": "empty"}, DataError, "holds no text"),
        ({"text": "binary"}, DataError, "is not UTF-8 text: byte 0"),
        ({"shard": Path("nowhere/valid")}, DataError, "nowhere/valid"),
    ],
)
def test_what_cannot_be_scored_is_said(
    options: dict, error: type[Exception], text: str, tmp_path: Path, spm: Path, shard: Path
) -> None:
    contents = {"empty": b"", "binary": b"\xff\xfe\x00"}
    if options.get("text") in contents:
        path = tmp_path / "text.txt"
        path.write_bytes(contents[options["text"]])
        options = {"text": path}
    with pytest.raises(error, match=text):
        evaluate(_checkpoint(tmp_path, "mlm", spm, shard), **options)


def test_weights_without_a_run_need_something_to_score(tmp_path: Path, spm: Path, shard: Path) -> None:
    config = small_config()
    folder = write_weights_folder(tmp_path / "imported", small_model(config), config, spm)
    with pytest.raises(ConfigError, match="name no validation shard; give --data PREFIX or --text FILE"):
        evaluate(folder)
    assert evaluate(folder, shard=shard, sequences=2)["mlm_targets"] > 0
    (folder / "spm.model").unlink()
    with pytest.raises(CheckpointError, match=r"spm\.model: is missing; put the tokenizer"):
        evaluate(folder)
