"""Scale-invariant fine-tuning of an export, as docs/examples shows it."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
import torch
import transformers
from torch import Tensor
from transformers import AutoModelForSequenceClassification

from megadeberta.convert.export import export_checkpoint
from megadeberta.convert.formats.family import ModelKind
from tests.data_fixtures import SOTU
from tests.unit.convert.small_models import padded_batch, small_config, small_model, write_weights_folder

EXAMPLE = Path(__file__).parents[3] / "docs" / "examples" / "finetune_with_sift.py"
START, STEP = 1e-2, 1e-4
WORD_TABLE = "deberta.embeddings.word_embeddings.weight"


@pytest.fixture(scope="module")
def example() -> ModuleType:
    spec = importlib.util.spec_from_file_location("finetune_with_sift", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory, spm: Path) -> Path:
    root, config = tmp_path_factory.mktemp("export"), small_config()
    write_weights_folder(root / "source", small_model(config), config, spm)
    export_checkpoint(root / "source", root / "out", kind=ModelKind.BACKBONE)
    return root / "out"


@pytest.fixture
def model(exported: Path) -> transformers.PreTrainedModel:
    """With a head that has opinions: a fresh one is so flat that every gradient drowns in SiFT's 1e-6."""
    torch.manual_seed(0)
    loaded = AutoModelForSequenceClassification.from_pretrained(exported, num_labels=3).eval()
    with torch.no_grad():
        for head in (loaded.pooler.dense, loaded.classifier):
            head.weight *= 20
    return loaded


def test_perturbation_starts_small_and_moves_each_token_by_one_step(
    example: ModuleType, model: transformers.PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Tensor] = []
    original = example.Sift._normalise_and_perturb

    def record(self: object, module: torch.nn.Module, inputs: tuple[Tensor, ...]) -> Tensor:
        if self.delta is not None:
            seen.append(self.delta.detach().clone())
        return original(self, module, inputs)

    monkeypatch.setattr(example.Sift, "_normalise_and_perturb", record)
    plain = model(*padded_batch(small_config())).logits
    sift = example.Sift(model, start=START, step=STEP)
    ids, mask = padded_batch(small_config())
    clean = model(ids, mask).logits
    # LayerNorm of what is normalised already changes eps only.
    torch.testing.assert_close(clean, plain, rtol=0, atol=1e-4)
    sift.loss(lambda: model(ids, mask).logits, clean)
    first, moved = seen
    assert first.abs().max() <= 2 * START and first.std() > START / 2
    step = (moved - first).abs().amax(-1)
    assert (step <= STEP * 1.001).all()  # of fp32 sums
    assert (step[mask.bool()] > STEP / 2).all() and (step[~mask.bool()] < 1e-9).all()
    assert sift.delta is None


def test_perturbed_pass_gives_the_word_table_no_gradient(
    example: ModuleType, model: transformers.PreTrainedModel
) -> None:
    sift = example.Sift(model, start=START, step=STEP)
    ids, mask = padded_batch(small_config())
    clean = model(ids, mask).logits
    loss = sift.loss(lambda: model(ids, mask).logits, clean.detach())
    names, parameters = zip(*model.named_parameters(), strict=True)
    found = dict(zip(names, torch.autograd.grad(loss, parameters, allow_unused=True), strict=True))
    assert found[WORD_TABLE] is None
    assert found["deberta.embeddings.LayerNorm.weight"].abs().max() > 0
    assert found["deberta.encoder.layer.0.output.dense.weight"].abs().max() > 0


def test_the_step_goes_where_predictions_move_most(example: ModuleType, model: transformers.PreTrainedModel) -> None:
    ids, mask = padded_batch(small_config())
    losses = []
    for step in (0.0, 1e-2):
        torch.manual_seed(3)
        sift = example.Sift(model, start=START, step=step)
        losses.append(sift.loss(lambda: model(ids, mask).logits, model(ids, mask).logits).item())
        sift.remove()
    assert losses[1] > losses[0]


def test_divergence_is_two_cross_entropies_with_detached_targets(example: ModuleType) -> None:
    a = torch.tensor([[1.0, 0.0, -1.0]], dtype=torch.float32, requires_grad=True)
    b = torch.tensor([[0.0, 2.0, 0.5]], dtype=torch.float32, requires_grad=True)
    value = example.symmetric_divergence(a, b)
    p, q = a.softmax(-1), b.softmax(-1)
    assert value.item() == pytest.approx(-(q * p.log()).sum().item() - (p * q.log()).sum().item(), rel=1e-6)
    gradient_a, gradient_b = torch.autograd.grad(value.sum(), [a, b])
    torch.testing.assert_close(gradient_a, p - q, rtol=0, atol=1e-6)  # of a cross entropy in its logits
    torch.testing.assert_close(gradient_b, q - p, rtol=0, atol=1e-6)


def test_the_example_fine_tunes_an_export(
    example: ModuleType, exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [line for line in SOTU.read_text(encoding="utf-8").splitlines() if line][:24]
    labelled = tmp_path / "sentences.tsv"
    labelled.write_text("\n".join(f"{len(line) % 2}\t{line[:60]}" for line in lines), encoding="utf-8")
    options = ["--epochs", "4", "--batch-size", "8", "--lr", "1e-3"]
    example.main([str(exported), str(labelled), str(tmp_path / "tuned"), *options])
    lines = [line.split() for line in capsys.readouterr().out.splitlines() if line.startswith("epoch")]
    assert {(*line[:1], *line[2::2]) for line in lines} == {("epoch", "loss", "SiFT", "accuracy")}
    losses = [float(line[3]) + 5 * float(line[5]) for line in lines]
    assert len(losses) == 4 and losses[-1] < losses[0]
    assert all(0 <= float(line[7]) <= 1 for line in lines)
    assert AutoModelForSequenceClassification.from_pretrained(tmp_path / "tuned").config.num_labels == 2
