"""Pseudo-log-likelihoods of minimal pairs against one-by-one computation, ours and transformers' models alike."""

import gzip
import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForMaskedLM, BertConfig, BertForMaskedLM, PreTrainedTokenizerFast
from typer.testing import CliRunner

from megadeberta.cli import command_line
from megadeberta.errors import CheckpointError, ConfigError, DataError
from megadeberta.evaluate.inputs import Pair, read_pairs
from megadeberta.evaluate.minimal_pairs import Sentence, log_likelihoods, score_pairs
from megadeberta.evaluate.token_models import OwnModel, TransformersModel, open_token_model
from megadeberta.weights.source import load_weights
from tests.unit.convert.small_models import small_config, small_model, write_checkpoint

PAIRS = [
    ("agreement", "agreement", "syntax", "The wars were long", "The wars was long"),
    ("agreement", "agreement", "syntax", "A law is good", "A law are good"),
    ("islands", "island_effects", "syntax", "Who should the navy see?", "Who should see the navy?"),
    ("quantifiers", "quantifiers", "semantics", "No state has ever paid", "Every state has ever paid"),
]
FIELDS = ("UID", "linguistics_term", "field", "sentence_good", "sentence_bad")


def _write(path: Path, rows: list[tuple[str, ...]] = PAIRS) -> Path:
    text = "".join(json.dumps(dict(zip(FIELDS, row, strict=True)) | {"pairID": "0"}) + "\n" for row in rows)
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_text(text)
    return path


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, spm: Path) -> Path:
    folder, config = tmp_path_factory.mktemp("run"), small_config()
    write_checkpoint(folder, small_model(config), config, spm, step=7)
    return folder


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory, run: Path) -> Path:
    """A masked model of another family, with a tokenizer of its own."""
    from megadeberta.convert.export import export_checkpoint

    folder = tmp_path_factory.mktemp("bert")
    export_checkpoint(run, folder / "export")
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder / "export")
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = BertConfig(vocab_size=1100, intermediate_size=20, max_position_embeddings=64, **sizes)
    BertForMaskedLM(config).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    return folder / "model"


class _Counted:
    """Prefers even tokens; the logits of a row depend on all of its ids."""

    mask_id = 9
    longest = 20

    def __init__(self) -> None:
        self.rows = 0

    def encode(self, texts: list[str]) -> list[Sentence]:
        return [Sentence(tuple(map(int, text)), tuple(range(1, len(text) - 1))) for text in texts]

    def logits(self, ids: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        self.rows += len(ids)
        assert (ids.gather(1, places[:, None]) == self.mask_id).all()
        weights = torch.arange(10.0).cos()
        return torch.outer(ids.float().sum(1).sin(), weights) + (torch.arange(10) % 2 == 0)


def test_sums_do_not_depend_on_the_batch() -> None:
    draw, model = random.Random(1), _Counted()
    texts = ["0" + "".join(draw.choice("2345678") for _ in range(draw.randint(1, 7))) + "1" for _ in range(40)]
    sentences = model.encode(texts)
    expected = [log_likelihoods(model, [sentence], batch_size=1)[0] for sentence in sentences]
    assert log_likelihoods(model, sentences, batch_size=16) == pytest.approx(expected, abs=1e-12)


def test_a_tie_is_wrong_and_a_sentence_is_scored_once() -> None:
    model = _Counted()
    found = score_pairs(model, [Pair("a", "p", "f", "0221", "0221"), Pair("b", "p", "f", "0221", "0331")], batch_size=8)
    assert found.paradigms["a"] == 0.0 and found.accuracy == sum(found.paradigms.values()) / 2
    assert model.rows == 4


def test_our_model_gives_what_each_masked_token_gets_by_itself(run: Path) -> None:
    model = OwnModel(load_weights(run))
    (sentence,) = model.encode([PAIRS[0][3]])
    total = 0.0
    for place in sentence.places:
        ids = torch.tensor([sentence.ids])
        target = int(ids[0, place])
        ids[0, place] = model.mask_id
        with torch.no_grad():
            total += float(model._model.mlm_logits(ids, torch.ones_like(ids))[0, place].log_softmax(-1)[target])
    assert log_likelihoods(model, [sentence], batch_size=3) == [pytest.approx(total, rel=1e-5)]


def test_any_masked_model_of_transformers_is_scored(bert: Path) -> None:
    model, name, step = open_token_model(bert)
    assert isinstance(model, TransformersModel) and (name, step) == (str(bert), None)
    (sentence,) = model.encode([PAIRS[0][3]])
    direct, total = AutoModelForMaskedLM.from_pretrained(bert).eval(), 0.0
    for place in sentence.places:
        ids = torch.tensor([sentence.ids])
        target = int(ids[0, place])
        ids[0, place] = model.mask_id
        with torch.no_grad():
            total += float(direct(input_ids=ids).logits[0, place].log_softmax(-1)[target])
    assert log_likelihoods(model, [sentence], batch_size=3) == [pytest.approx(total, rel=1e-5)]


def test_command_prints_paradigms_phenomena_and_all(run: Path, tmp_path: Path) -> None:
    command, path = command_line(["evaluate", "train"]), _write(tmp_path / "blimp.jsonl.gz")
    done = CliRunner().invoke(command, ["evaluate", str(run), "--blimp", str(path), "--json"], catch_exceptions=False)
    found = json.loads(done.stdout)
    assert found["step"] == 7 and found["blimp"]["pairs"] == 4
    blimp = found["blimp"]
    assert set(blimp["paradigms"]) == {"agreement", "islands", "quantifiers"}
    assert blimp["phenomena"]["island_effects"] == blimp["paradigms"]["islands"]
    assert blimp["accuracy"] * 4 == pytest.approx(3 * blimp["fields"]["syntax"] + blimp["fields"]["semantics"])
    shown = CliRunner().invoke(command, ["evaluate", str(run), "--blimp", str(path), "--pairs", "1"])
    assert "all 3 pairs" in shown.stdout and "island effects" in shown.stdout


def test_a_sentence_that_is_too_long_is_said_before_any_is_scored() -> None:
    model = _Counted()
    with pytest.raises(DataError, match=r"a sentence has 22 tokens with \[CLS\] and \[SEP\], the model takes 20"):
        score_pairs(model, [Pair("a", "p", "f", "0221", "0" + "2" * 20 + "1")], batch_size=8)
    assert model.rows == 0


def test_a_folder_is_read_file_by_file(tmp_path: Path) -> None:
    _write(tmp_path / "a.jsonl", PAIRS[:2])
    _write(tmp_path / "b.jsonl", PAIRS[2:])
    assert [pair.paradigm for pair in read_pairs(tmp_path)] == [row[0] for row in PAIRS]
    assert len(read_pairs(tmp_path, most=1)) == 3
    both = [(*row[:2], field, *row[3:]) for row, field in zip(PAIRS, ("a/b", "a_b"), strict=False)]
    assert {pair.field for pair in read_pairs(_write(tmp_path / "c.jsonl", both))} == {"a_b"}


def test_what_is_no_pair_is_named(tmp_path: Path, run: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"UID": "x"}\n')
    with pytest.raises(DataError, match="line 1: is no pair of BLiMP with UID, field, "):
        read_pairs(tmp_path / "a.jsonl")
    with pytest.raises(DataError, match="cannot be read"):
        read_pairs(tmp_path / "none.jsonl")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no pairs"):
        read_pairs(tmp_path / "empty")
    path = _write(tmp_path / "b.jsonl")
    with pytest.raises(ConfigError, match="--blimp is scored alone"):
        arguments = ["evaluate", str(run), "--blimp", str(path), "--text", str(path)]
        CliRunner().invoke(command_line(["evaluate", "train"]), arguments, catch_exceptions=False)


def test_a_model_without_a_head_is_named(bert: Path, tmp_path: Path) -> None:
    from transformers import BertModel

    BertModel.from_pretrained(bert).save_pretrained(tmp_path)
    PreTrainedTokenizerFast.from_pretrained(bert).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"has no cls\.predictions.*predicts no masked tokens"):
        open_token_model(tmp_path)
