"""Losses and the gradient of every parameter, against loops over the formulas, in float64."""

from collections.abc import Iterable

import pytest
import torch
from torch import Tensor

from megadeberta.config.model import ModelConfig
from megadeberta.config.objective import ObjectiveConfig, RtdConfig
from megadeberta.layers.catalogue import rtd_layers
from megadeberta.layers.objectives import list_layers
from megadeberta.model.initialize import initialize
from megadeberta.model.whole import WholeModel
from tests.models import INPUT_POSITIONS, V1, V2, tiny_v3
from tests.unit.model.naive import Naive, binary_cross_entropy, cross_entropy

SIZES = {
    "vocab_size": 12,
    "hidden_size": 8,
    "intermediate_size": 12,
    "position_buckets": 4,
    "max_position_embeddings": 8,
}
MODELS = {
    "v3": {},
    "v2 with convolution": V2,
    "v2 with grouped tanh convolution": V2 | {"conv_groups": 2, "conv_act": "tanh"},
    "v1": V1,
    "separate projections": {"share_att_key": False},
    "c2p only": {"pos_att_type": ("c2p",)},
    "p2c only": {"pos_att_type": ("p2c",), "share_att_key": False},
    "no position terms": {"pos_att_type": ()},
    "no relative attention": {"relative_attention": False},
    "input positions and types": INPUT_POSITIONS,
    "narrow embeddings": {"embedding_size": 6, "enhanced_mask_decoder": False},
    "no mask decoder": {"enhanced_mask_decoder": False},
}
IDS = torch.tensor([[1, 5, 3, 4, 3, 2], [1, 6, 3, 2, 0, 0]])
MASK = torch.tensor([[1] * 6, [1, 1, 1, 1, 0, 0]])
POSITIONS, LABELS = torch.tensor([[2, 4], [2, 0]]), torch.tensor([[7, 9], [10, 0]])


def _model(specs: list, seed: int = 3) -> WholeModel:
    model = WholeModel(specs).double().eval()
    initialize(model, seed=seed, std=0.4)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():  # biases and LayerNorm weights that matter
        for name, parameter in model.named_parameters():
            if parameter.dim() == 1 or name.endswith(".delta"):
                parameter.add_(torch.empty(parameter.shape).uniform_(-0.2, 0.2, generator=generator))
    return model


def _naive(model: WholeModel, config: ModelConfig) -> Naive:
    parameters = dict(model.named_parameters())
    return Naive(config, parameters, table=parameters["embeddings.word_embeddings.weight"])


def _compare(model: WholeModel, ours: Tensor, loops: Tensor, *, padding_row: Iterable[str] = ()) -> None:
    assert ours.item() == pytest.approx(loops.item(), rel=1e-12)
    names, parameters = zip(*model.named_parameters(), strict=True)
    found = torch.autograd.grad(ours, parameters, allow_unused=True, retain_graph=True)
    wanted = torch.autograd.grad(loops, parameters, allow_unused=True)
    used = 0
    for name, a, b, parameter in zip(names, found, wanted, parameters, strict=True):
        a = torch.zeros_like(parameter) if a is None else a
        b = torch.zeros_like(parameter) if b is None else b
        assert (a - b).abs().max().item() < 1e-8, name
        used += bool(b.abs().max() > 1e-6)
    assert used > len(names) * 0.7


def _targets(batch: int) -> list[tuple[int, int]]:
    return [(p, y) for p, y in zip(POSITIONS[batch].tolist(), LABELS[batch].tolist(), strict=True) if y]


@pytest.mark.parametrize("changes", MODELS.values(), ids=MODELS.keys())
def test_masked_language_modelling_equals_the_loops(changes: dict[str, object]) -> None:
    config = tiny_v3(**SIZES | changes)
    model = _model(list_layers(config, ObjectiveConfig()))
    terms, _ = model(IDS, MASK, POSITIONS, LABELS)
    naive = _naive(model, config)
    loops = torch.zeros((), dtype=torch.float64)
    for b in range(2):
        ids, real = IDS[b].tolist(), MASK[b].bool().tolist()
        targets = _targets(b)
        states = naive.decode(ids, real, [0] * 6, lambda i, j: True, [p for p, _ in targets])
        loops = loops + sum(cross_entropy(naive.predict(states[p]), y) for p, y in targets)
    _compare(model, terms["mlm_loss"][0], loops)


@pytest.mark.parametrize("prefix", [0, 3, 6])
@pytest.mark.parametrize("changes", [{}, V1], ids=["v3", "v1"])
def test_left_to_right_and_prefix_attention_equals_the_loops(changes: dict[str, object], prefix: int) -> None:
    config = tiny_v3(**SIZES | changes)
    model = _model(list_layers(config, ObjectiveConfig()))
    terms, _ = model(IDS, MASK, POSITIONS, LABELS, prefix_lengths=torch.tensor([prefix, prefix]))
    naive = _naive(model, config)
    loops = torch.zeros((), dtype=torch.float64)
    for b in range(2):
        ids, real = IDS[b].tolist(), MASK[b].bool().tolist()
        targets = _targets(b)
        states = naive.decode(ids, real, [0] * 6, lambda i, j: j <= i or j < prefix, [p for p, _ in targets])
        loops = loops + sum(cross_entropy(naive.predict(states[p]), y) for p, y in targets)
    name = "mlm_loss" if prefix == 6 else "ar_loss"
    assert terms[name][1].item() == 3
    _compare(model, terms[name][0], loops)


@pytest.mark.parametrize(
    "changes",
    [{"conv_kernel_size": 3}, {"position_biased_input": True, "enhanced_mask_decoder": False}],
    ids=["decoder positions and convolution", "input positions"],
)
def test_packed_documents_equal_the_loops(changes: dict[str, object]) -> None:
    config = tiny_v3(**SIZES | changes)
    model = _model(list_layers(config, ObjectiveConfig()))
    ids, mask = torch.tensor([[1, 5, 2, 1, 3, 8, 2, 0]]), torch.tensor([[1] * 7 + [0]])
    starts = [0, 0, 0, 3, 3, 3, 3, 3]
    terms, _ = model(ids, mask, torch.tensor([[1, 4]]), torch.tensor([[6, 7]]), document_starts=torch.tensor([starts]))
    naive = _naive(model, config)
    states = naive.decode(ids[0].tolist(), mask[0].bool().tolist(), starts, lambda i, j: starts[i] == starts[j], [1, 4])
    loops = cross_entropy(naive.predict(states[1]), 6) + cross_entropy(naive.predict(states[4]), 7)
    _compare(model, terms["mlm_loss"][0], loops)


@pytest.mark.parametrize("sharing", ["gdes", "es", "nes"])
@pytest.mark.parametrize("packed", [False, True])
def test_joint_replaced_token_detection_equals_the_loops(sharing: str, packed: bool) -> None:
    config = tiny_v3(**SIZES)
    rtd = RtdConfig(embedding_sharing=sharing, generator_layers=2)
    model = _model(rtd_layers(config, rtd))
    starts = [0, 0, 0, 3, 3, 3] if packed else [0] * 6
    more = {"document_starts": torch.tensor([starts, [0] * 6])} if packed else {}
    keys = torch.tensor([11, 12])
    terms, _ = model(IDS, MASK, POSITIONS, LABELS, sample_numbers=keys, **more)
    _, handed_on = model(IDS, MASK, POSITIONS, LABELS, sample_numbers=keys, part="generator", **more)

    parameters = dict(model.named_parameters())
    table = parameters["generator.embeddings.word_embeddings.weight"]
    tables = {"es": table, "nes": parameters.get("discriminator.embeddings.word_embeddings.weight")}
    if sharing == "gdes":
        tables["gdes"] = table.detach() + parameters["discriminator.embeddings.word_embeddings.delta"]
    generator = Naive(rtd.generator(config), parameters, table=table, prefix="generator.")
    discriminator = Naive(rtd.discriminator(config), parameters, table=tables[sharing], prefix="discriminator.")
    loops = torch.zeros((), dtype=torch.float64)
    for b in range(2):
        own = starts if b == 0 else [0] * 6
        ids, real = IDS[b].tolist(), MASK[b].bool().tolist()
        targets = _targets(b)
        visible = lambda i, j, own=own: own[i] == own[j]  # noqa: E731
        states = generator.decode(ids, real, own, visible, [p for p, _ in targets])
        loops = loops + sum(cross_entropy(generator.predict(states[p]), y) for p, y in targets) / 3
        sampled, replaced = handed_on["input_ids"][b].tolist(), handed_on["replaced"][b].tolist()
        assert replaced == [any(i == p and sampled[p] != y for p, y in targets) for i in range(6)]
        hidden = discriminator.encode(sampled, real, own, visible, layers=3)
        judged = [
            binary_cross_entropy(discriminator.judge(hidden, i, own[i]), replaced[i]) for i in range(6) if real[i]
        ]
        loops = loops + 50 * sum(judged) / 10
    ours = terms["mlm_loss"][0] / 3 + 50 * terms["rtd_loss"][0] / 10
    _compare(model, ours, loops)
