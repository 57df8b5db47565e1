"""Embedding sharing, targets and the folded tables of replaced token detection."""

import math

import pytest
import torch
import transformers
from torch import Tensor

from megadeberta.config.model import ModelConfig
from megadeberta.config.objective import RtdConfig
from megadeberta.convert.formats.names import backbone_names
from megadeberta.layers.catalogue import backbone_layers, rtd_layers
from megadeberta.model.carry import Carry
from megadeberta.model.dropout import Draws
from megadeberta.model.initialize import initialize
from megadeberta.model.sampling import Sample
from megadeberta.model.whole import WholeModel
from megadeberta.weights.parts import split_parts
from tests.models import rtd_logits
from tests.unit.model.golden import golden_config

IDS = torch.tensor([[1, 5, 11, 4, 11, 2], [1, 6, 11, 2, 0, 0]])
MASK = torch.tensor([[1] * 6, [1, 1, 1, 1, 0, 0]])
TARGETS = {"masked_positions": torch.tensor([[2, 4], [2, 0]]), "masked_labels": torch.tensor([[7, 9], [10, 0]])}
TABLE = "generator.embeddings.word_embeddings.weight"
DELTA = "discriminator.embeddings.word_embeddings.delta"
OWN = "discriminator.embeddings.word_embeddings.weight"


def _config(**changes: object) -> ModelConfig:
    return golden_config(num_hidden_layers=3, **changes)


def _model(sharing: str, **changes: object) -> WholeModel:
    rtd = RtdConfig(embedding_sharing=sharing, generator_layers=2)
    model = WholeModel(rtd_layers(_config(**changes), rtd)).double().eval()
    initialize(model, seed=1, std=0.3)
    return model


def _gradients(model: WholeModel, term: str) -> dict[str, Tensor | None]:
    terms, _ = model(IDS, MASK, **TARGETS, sample_numbers=torch.tensor([5, 6]))
    names, parameters = zip(*model.named_parameters(), strict=True)
    return dict(zip(names, torch.autograd.grad(terms[term][0], parameters, allow_unused=True), strict=True))


@pytest.mark.parametrize("positions", [False, True], ids=["word table", "word and position tables"])
def test_gdes_keeps_the_two_gradients_apart(positions: bool) -> None:
    model = _model("gdes", position_biased_input=positions)
    parameters = dict(model.named_parameters())
    assert parameters[DELTA].abs().max() == 0
    rtd, mlm = _gradients(model, "rtd_loss"), _gradients(model, "mlm_loss")
    deltas = [name for name in parameters if name.endswith(".delta")]
    assert len(deltas) == 1 + positions
    for delta in deltas:
        table = delta.replace("discriminator", "generator").replace(".delta", ".weight")
        assert rtd[table] is None and rtd[delta].abs().max() > 0
        assert mlm[delta] is None and mlm[table].abs().max() > 0


def test_gdes_reads_the_sum_of_both_tables() -> None:
    model = _model("gdes")
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        parameters[DELTA].normal_(generator=torch.Generator().manual_seed(2))
    embeddings = model.get_submodule("discriminator.embeddings")
    looked_up = embeddings.word_embeddings(IDS)
    assert torch.equal(looked_up, (parameters[TABLE] + parameters[DELTA])[IDS])


def test_es_adds_both_gradients_and_nes_keeps_two_tables() -> None:
    shared = _model("es")
    assert OWN not in dict(shared.named_parameters())
    rtd, mlm = _gradients(shared, "rtd_loss"), _gradients(shared, "mlm_loss")
    terms, _ = shared(IDS, MASK, **TARGETS, sample_numbers=torch.tensor([5, 6]))
    table = shared.get_parameter(TABLE)
    (both,) = torch.autograd.grad(terms["mlm_loss"][0] + terms["rtd_loss"][0], [table])
    assert rtd[TABLE].abs().max() > 0 and mlm[TABLE].abs().max() > 0
    torch.testing.assert_close(both, rtd[TABLE] + mlm[TABLE], rtol=1e-12, atol=1e-12)

    separate = _model("nes")
    rtd, mlm = _gradients(separate, "rtd_loss"), _gradients(separate, "mlm_loss")
    assert rtd[TABLE] is None and mlm[OWN] is None
    assert rtd[OWN].abs().max() > 0 and mlm[TABLE].abs().max() > 0


@pytest.mark.parametrize("sharing", ["gdes", "es", "nes"])
def test_no_gradient_passes_through_sampling(sharing: str) -> None:
    rtd, mlm = (_gradients(_model(sharing), term) for term in ("rtd_loss", "mlm_loss"))
    shared = {TABLE} if sharing == "es" else set()
    for name in rtd:
        if name.startswith("generator.") and name not in shared:
            assert rtd[name] is None, name
        if name.startswith("discriminator."):
            assert mlm[name] is None, name


def _sure(favourites: list[list[int]], targets: dict[str, Tensor]) -> Tensor:
    """Logits of a generator that is sure of these ids, ``[B, Q]``; a head gives those of filled slots."""
    logits = torch.nn.functional.one_hot(torch.tensor(favourites), 12) * 1e4
    return logits[targets["masked_labels"] != 0].double()


def _sampled(favourites: list[list[int]]) -> Carry:
    """The sequence after a generator that is sure of these ids, ``[B, Q]``."""
    carry = Carry(
        IDS, MASK.bool(), **TARGETS, masked_logits=_sure(favourites, TARGETS), draws=Draws.of(torch.tensor([1, 2]), 6)
    )
    return Sample(1.0)(carry)


def test_a_sample_that_equals_the_original_is_no_replacement() -> None:
    carry = _sampled([[7, 3], [8, 5]])
    assert carry.input_ids.tolist() == [[1, 5, 7, 4, 3, 2], [1, 6, 8, 2, 0, 0]]
    assert carry.replaced.tolist() == [[False, False, False, False, True, False], [False, False, True] + [False] * 3]
    rates = {name: (total.item(), count.item()) for name, (total, count) in carry.terms.items()}
    assert rates == {"masked_rate": (3, 10), "sampled_rate": (3, 10), "replaced_rate": (2, 10)}


def test_empty_slots_change_nothing_even_beside_a_masked_first_token() -> None:
    targets = {"masked_positions": torch.tensor([[0, 0]]), "masked_labels": torch.tensor([[9, 0]])}
    logits = _sure([[8, 4]], targets)
    carry = Carry(IDS[:1], MASK[:1].bool(), **targets, masked_logits=logits, draws=Draws.of(torch.tensor([1]), 6))
    assert Sample(1.0)(carry).input_ids.tolist() == [[8, 5, 11, 4, 11, 2]]


def test_loss_counts_marks_and_not_padding_and_precision_and_recall_are_those_of_the_calls() -> None:
    model = _model("nes")
    replaced = torch.zeros(2, 6, dtype=torch.bool)
    replaced[0, 2] = replaced[1, 2] = True
    logits = rtd_logits(model, IDS, MASK)
    terms, _ = model(IDS, MASK, part="discriminator", replaced=replaced)
    total = sum(
        math.log1p(math.exp(-x if y else x))
        for x, y, real in zip(*(t.flatten().tolist() for t in (logits, replaced, MASK)), strict=True)
        if real
    )
    assert terms["rtd_loss"][0].item() == pytest.approx(total, rel=1e-12)
    called = (logits > 0) & MASK.bool()
    found = (called & replaced).sum().item()
    assert [t.item() for t in terms["rtd_precision"]] == [found, called.sum().item()]
    assert [t.item() for t in terms["rtd_recall"]] == [found, 2]
    assert [t.item() for t in terms["rtd_loss"]][1] == 10


@pytest.mark.parametrize("sharing", ["gdes", "es", "nes"])
def test_split_parts_are_models_that_give_the_same_states(sharing: str) -> None:
    model = _model(sharing)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(".delta"):
                parameter.normal_(generator=torch.Generator().manual_seed(2))
    generator, discriminator = split_parts(dict(model.named_parameters()))
    config = _config()
    alone = WholeModel(backbone_layers(config)).double().eval()
    kept = {name: tensor for name, tensor in discriminator.items() if not name.startswith("rtd_head.")}
    alone.load_state_dict(kept, strict=True)
    assert torch.equal(alone.encode(IDS, MASK), model.encode(IDS, MASK))
    assert not [name for name in discriminator if "delta" in name]
    if sharing == "gdes":
        weights = dict(model.named_parameters())
        assert torch.equal(kept["embeddings.word_embeddings.weight"], weights[TABLE] + weights[DELTA])
    assert {n for n in generator if n.startswith("mlm_head.")} and "mlm_head.decoder.bias" in generator


def test_discriminator_loads_in_transformers_with_the_summed_table() -> None:
    model = _model("gdes").float()
    with torch.no_grad():
        dict(model.named_parameters())[DELTA].normal_(0, 0.1, generator=torch.Generator().manual_seed(2))
    config = _config()
    _, discriminator = split_parts(dict(model.named_parameters()))
    names = backbone_names(config)
    theirs = transformers.DebertaV2Model(
        transformers.DebertaV2Config(
            **config.model_dump(exclude={"key_bias", "enhanced_mask_decoder", "embedding_size", "pos_att_type"}),
            pos_att_type=["p2c", "c2p"],
        )
    ).eval()
    state = {names[name]: tensor for name, tensor in discriminator.items() if not name.startswith("rtd_head.")}
    assert set(state) == {n for n in theirs.state_dict() if n != "embeddings.position_ids"}
    theirs.load_state_dict(state, strict=True)
    found = theirs(IDS, attention_mask=MASK).last_hidden_state[MASK.bool()]
    torch.testing.assert_close(found, model.encode(IDS, MASK)[MASK.bool()], rtol=0, atol=2e-5)  # fp32, two layouts
