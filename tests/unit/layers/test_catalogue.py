"""The catalogue against what is really made: parameters, terms, rows of tables, slots, operations; and every table
that must know a kind of layer, an objective or a term knows it."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from megadeberta.batch import FIELDS, batch_fields, blank_batch
from megadeberta.config.data import DataConfig
from megadeberta.config.model import ModelConfig
from megadeberta.config.objective import ObjectiveConfig
from megadeberta.data.counter_random import stream_key
from megadeberta.data.targets import TARGETS, load_targets
from megadeberta.data.tokenizer import CLS_ID, SEP_ID, PieceKind
from megadeberta.layers.flops import layers_flops_per_token, run_flops_per_token
from megadeberta.layers.layer import KINDS, TRAINING_OPERATIONS
from megadeberta.layers.micro_batch import MicroBatch
from megadeberta.layers.objectives import OBJECTIVES, list_layers, objective_of
from megadeberta.layers.recipe import micro_batch_of
from megadeberta.layers.relative import RelativeTable, relative_rows
from megadeberta.layers.shapes import shapes_of
from megadeberta.layers.stages import plan_stages
from megadeberta.layers.terms import TERMS, term
from megadeberta.model.attention_backend import select_attention
from megadeberta.model.carry import Carry
from megadeberta.model.whole import MODULES, WholeModel, build_module
from megadeberta.parallel.pipeline.packing import term_names
from megadeberta.plan.layout import Layout
from tests.models import INPUT_POSITIONS, V1, V2, masked_batch, read_left_to_right, run_config, tiny_v3

LENGTHS = [64, 128, 256, 384, 512, 2048]
SHAPES = [{}, V1, V2, INPUT_POSITIONS, {"relative_attention": False}, {"share_att_key": False}]
SHAPES += [{"embedding_size": 8, "enhanced_mask_decoder": False}, {"pos_att_type": "c2p"}, {"norm_rel_ebd": "none"}]
SETTINGS = [{"name": name} for name in OBJECTIVES] + [{"name": "rtd", "rtd": {"decoupled": True}}]
SETTINGS += [{"name": "rtd", "rtd": {"embedding_sharing": sharing}} for sharing in ("es", "nes")]


def _settings(values: dict[str, object]) -> ObjectiveConfig:
    return ObjectiveConfig.model_validate(values)


def test_every_kind_of_layer_has_a_module_and_every_module_a_kind() -> None:
    assert MODULES.keys() == KINDS.keys()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_layers_have_the_parameters_of_their_modules(shape: dict[str, object], settings: dict[str, object]) -> None:
    layers = list_layers(tiny_v3(num_hidden_layers=4, **shape), _settings(settings))
    for layer in layers:
        with torch.device("meta"):
            module = build_module(layer)
        tied = {tie.attribute for tie in layer.ties}  # the owner's parameter takes the place of these
        own = {name: tuple(p.shape) for name, p in module.named_parameters() if name not in tied}
        assert own == layer.own_parameters(), layer.name
    with torch.device("meta"):
        whole = WholeModel(layers)
    assert {name: tuple(p.shape) for name, p in whole.named_parameters()} == shapes_of(layers)


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_the_model_computes_the_terms_that_its_layers_name(settings: dict[str, object]) -> None:
    config, objective = tiny_v3(num_hidden_layers=4), _settings(settings)
    batch = masked_batch(config)
    if "prefix_lengths" in objective_of(objective).batch_fields:
        batch = read_left_to_right(batch, 0, 12)
    layers = list_layers(config, objective)
    terms, _ = WholeModel(layers)(**batch)
    assert tuple(terms) == term_names(layers)
    for name, (total, _) in terms.items():
        assert total.requires_grad == term(name).is_loss, name
        if term(name).is_loss:
            assert int(terms[name][1]) == int(term(name).count_targets(batch)), name


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_table_knows_every_objective(name: str) -> None:
    objective, settings = OBJECTIVES[name], ObjectiveConfig(name=name)
    assert objective.name == name
    assert objective.title
    assert objective.describe(settings)
    assert objective.targets in TARGETS
    assert set(objective.batch_fields) <= FIELDS.keys()
    layers, weights = objective.layers(tiny_v3(num_hidden_layers=4), settings), objective.loss_weights(settings)
    assert set(weights) <= set(term_names(layers))
    assert all(term(loss).is_loss for loss in weights)
    trained = [loss for update in objective.updates(settings) for loss in update.weights]
    assert sorted(trained) == sorted(weights)
    assert {layer.part for layer in layers} == objective.models(tiny_v3(num_hidden_layers=4), settings).keys()
    assert {layer.model for layer in layers} <= set(objective.models(tiny_v3(num_hidden_layers=4), settings).values())


@pytest.mark.parametrize("name", TERMS)
def test_every_loss_can_be_drawn_and_counted(name: str) -> None:
    entry = TERMS[name]
    assert entry.name == name
    if entry.is_loss:
        assert entry.label and entry.title and entry.unit.startswith("nats per ")
        blank = blank_batch(FIELDS, length=8)
        blank["prefix_lengths"] += 8
        assert int(entry.count_targets(blank)) == 0


@pytest.mark.parametrize("name", FIELDS)
def test_every_field_of_a_batch_reaches_the_layers(name: str) -> None:
    batch = blank_batch({**dict.fromkeys(("input_ids", "attention_mask")), name: None}, length=8)
    carry = Carry.of_batch(batch)
    if name == "sample_numbers":
        assert carry.draws is not None
    else:
        assert torch.equal(carry.field(name).long(), batch[name])


def test_an_unknown_term_or_a_second_kind_of_the_same_name_is_refused() -> None:
    with pytest.raises(Exception, match="unknown loss term 'm1m_loss': known are mlm_loss"):
        RelativeTable("relative", tiny_v3(), terms=("m1m_loss",))
    with pytest.raises(ValueError, match="two kinds of layers are called 'relative'"):

        class Other(RelativeTable, kind="relative"):
            pass


def _model(*, buckets: int) -> ModelConfig:
    span = {"max_position_embeddings": 2048, "max_relative_positions": 512}
    return tiny_v3(position_buckets=buckets, vocab_size=48, **span)


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("buckets", [256, -1])
def test_rows_of_the_relative_table_are_those_of_the_tensor(length: int, buckets: int) -> None:
    model = _model(buckets=buckets)
    layer = RelativeTable("relative", model)
    ids = torch.zeros(1, length, dtype=torch.int64)
    made = build_module(layer)(Carry(ids, ids.bool())).relative.table
    assert len(made) == relative_rows(model, length)
    batch = MicroBatch(1, length, 8, tensor=2)
    assert [collective.shape for collective in layer.collectives(batch)] == [tuple(made.shape)]


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("name", OBJECTIVES)
def test_slots_are_those_of_the_batches_that_the_loader_makes(length: int, name: str) -> None:
    """Of full sequences; whole words may take a slot multiple more."""
    settings = ObjectiveConfig(name=name, whole_word=False)
    kinds = np.array([PieceKind.SPECIAL] * 4 + [PieceKind.WORD_START] * 95 + [PieceKind.SPECIAL], np.uint8)
    tokens = np.random.default_rng(0).integers(4, 99, (64, length))
    tokens[:, 0], tokens[:, -1] = CLS_ID, SEP_ID
    made = load_targets(settings, kinds, mask_id=99)(tokens, stream_key(1, "test", np.arange(64)))
    assert made.masked_labels.shape[1] == objective_of(settings).slots(settings, length)
    counts = np.count_nonzero(made.masked_labels, axis=1)
    assert counts.max() == objective_of(settings).most_targets(settings, length)
    assert counts.mean() == pytest.approx(objective_of(settings).targets_per_sequence(settings, length), rel=0.25)


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("name", ["mlm", "rtd"])
@pytest.mark.parametrize("buckets", [256, -1])
def test_operations_are_the_matrix_products_that_a_forward_pass_makes(length: int, name: str, buckets: int) -> None:
    model, settings = _model(buckets=buckets), ObjectiveConfig(name=name)
    layers = list_layers(model.model_copy(update={"num_hidden_layers": 4}), settings)
    whole = WholeModel(layers).eval()
    select_attention(whole, "reference", torch.device("cpu"))
    slots = objective_of(settings).slots(settings, length)
    ids = torch.randint(4, 48, (1, length))
    batch = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "masked_positions": torch.arange(slots).unsqueeze(0),
        "masked_labels": ids[:, :slots],
        "sample_numbers": torch.tensor([1]),
    }
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        whole(**batch)
    micro = MicroBatch(1, length, slots)
    expected = sum(
        layer.multiply_adds(micro, rows=micro.rows)
        + layer.table_multiply_adds(micro)
        + layer.repeated_multiply_adds(micro)
        for layer in layers
    )
    assert counter.get_total_flops() == 2 * expected


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("name", OBJECTIVES)
def test_flops_stage_costs_and_plan_count_the_same_products(length: int, name: str) -> None:
    config = run_config(
        model={"max_position_embeddings": 2048, "num_hidden_layers": 4},
        data={"sequence_length": length},
        objective={"name": name},
    )
    layers, batch = list_layers(config.model, config.objective), micro_batch_of(config)
    stages = plan_stages(layers, batch, 2)
    extra = sum(layer.extra_operations(batch) for layer in layers)
    tables = sum(layer.table_multiply_adds(batch) + layer.repeated_multiply_adds(batch) for layer in layers)
    with_empty_slots = layers_flops_per_token(layers, sequence_length=length, targets_per_sequence=batch.slots)
    useful = sum(stage.operations for stage in stages) - extra - TRAINING_OPERATIONS * tables
    assert useful == pytest.approx(with_empty_slots * batch.tokens)
    assert run_flops_per_token(config.model, config.objective, sequence_length=length) <= with_empty_slots
    assert Layout(1, 1, 1, 0, batch.sequences, 1).micro_batch_of(config) == batch


def test_a_batch_has_the_fields_that_objective_and_packing_need() -> None:
    data = DataConfig(train=Path("t"), tokenizer=Path("s"))
    usual = ("input_ids", "attention_mask", "masked_positions", "masked_labels", "sample_numbers")
    assert batch_fields(data, ObjectiveConfig()) == usual
    packed = data.model_copy(update={"packing": "documents"})
    assert batch_fields(packed, ObjectiveConfig(name="ar")) == (*usual, "prefix_lengths", "document_starts")
