"""How many kernels a step launches on a GPU outside attention, and that the host does not wait within it.

Shapes: B micro batch · L length · Q target slots.
"""

from pathlib import Path
from typing import Any

import pytest
import torch

from megadeberta.assembly import assemble
from megadeberta.batch import ATTENTION_MASK, FIELDS, Batch, batch_fields
from megadeberta.config.load import load_run_config
from megadeberta.config.run import RunConfig
from megadeberta.engine.process_group import start_process_group
from megadeberta.layers.objectives import list_layers, objective_of
from megadeberta.model.attention_backend import select_attention, select_residual_norm
from megadeberta.model.dropout import set_sites
from megadeberta.model.logit_kernels import select_logits
from megadeberta.model.whole import WholeModel
from megadeberta.ops import triton_gumbel_max, triton_hidden_dropout, triton_residual_norm, triton_softmax_rows
from megadeberta.topology import Topology
from tests.launches import INSIDE, Counts, counted
from tests.models import masked_batch, run_config
from tests.ranks import run_ranks

RECIPES = Path(__file__).parents[3] / "ds_configs"
MOST = {"deberta-v3-base-mlm": 880, "deberta-v3-base": 1300}
MOST_OF_THE_ENGINE = {"mlm": 60, "rtd": 90}
CPU = torch.device("cpu")


def _model(config: RunConfig) -> WholeModel:
    """In bf16 on the meta device, with all kernels."""
    with torch.device("meta"):
        model = WholeModel(list_layers(config.model, config.objective)).bfloat16().train()
    # On a CPU the kernels may be selected for the interpreter, and the meta device runs none.
    select_attention(model, "triton", CPU)
    select_residual_norm(model, "triton", CPU, attention="triton")
    select_logits(model, "triton", CPU, torch.bfloat16)
    set_sites(model.named_modules(), seed=1)
    return model


def _pass(model: WholeModel, batch: Batch, config: RunConfig) -> Counts:
    """Of one forward and one backward pass of the model alone."""
    weights = objective_of(config.objective).loss_weights(config.objective)
    model.zero_grad()
    with counted() as counts:
        terms, _ = model(**batch)
        sum(terms[name][0] * weight for name, weight in weights.items()).backward()
    return counts


def _meta_batch(config: RunConfig) -> Batch:
    """Without padding, as a step hands it on."""
    sizes = {"token": (32, config.data.sequence_length), "slot": (32, 80), "sample": (32,)}
    fields = [name for name in batch_fields(config.data, config.objective) if name != ATTENTION_MASK]
    return {name: torch.zeros(sizes[FIELDS[name].axis], dtype=torch.int64, device="meta") for name in fields}


def _engine(rank: int, world_size: int, objective: str) -> dict[str, Any]:
    """What DeepSpeed and the step add to the passes of a base model's layers, narrow and on a CPU, and who waits."""
    config = run_config(
        model={"vocab_size": 67, "hidden_size": 16, "num_hidden_layers": 12, "num_attention_heads": 2}
        | {"intermediate_size": 32, "position_buckets": 4, "max_position_embeddings": 32},
        objective={"name": objective},
        data={"sequence_length": 16},
        deepspeed={
            "train_batch_size": 4,
            "train_micro_batch_size_per_gpu": 4,
            "gradient_clipping": 1.0,
            "bf16": {"enabled": True},
            "zero_optimization": {"stage": 1},
            "data_types": {"grad_accum_dtype": "fp32"},
        },
    )
    stepper = assemble(config, Topology(), start_process_group(60.0)).stepper
    batch = masked_batch(config.model, samples=4, length=16, slots=5)
    targets, _ = stepper.share_counts([batch])
    stepper.train_step([batch], step=0, targets=targets, lr=1e-3)
    with counted() as step:
        launched = stepper.launch_step([batch], step=1, targets=targets, lr=1e-3)
    with counted() as reading:
        launched.result()
    own = _pass(stepper.engine.module, batch, config)
    return {
        "launches": step.total - own.total,
        # The step reads the loader's masks before it copies them; ``numpy`` is an error for a device's tensor.
        "waits": {place: n for place, n in (step.our_waits - own.our_waits).items() if "batch.py" not in place},
        "reads": reading.our_waits.total(),
        "deepspeed": step.waits.total() - step.our_waits.total(),
    }


@pytest.mark.parametrize(("recipe", "objective"), [("deberta-v3-base-mlm", "mlm"), ("deberta-v3-base", "rtd")])
def test_a_step_launches_few_kernels_outside_attention_and_never_waits(recipe: str, objective: str) -> None:
    config = load_run_config(RECIPES / f"{recipe}.json")
    model, batch = _model(config), _meta_batch(config)
    _pass(model, batch, config)  # what is made once and for all
    passes = _pass(model, batch, config)
    assert not passes.waits
    (engine,) = run_ranks(_engine, 1, objective)
    assert engine["launches"] <= MOST_OF_THE_ENGINE[objective]
    assert engine["waits"] == {}, "the host waits before the optimizer is done"
    assert engine["reads"] == 1, "losses and norms come in one copy"
    assert engine["deepspeed"] <= 2  # its look at the norm, and at whether to clip
    assert passes.total + engine["launches"] <= MOST[recipe], passes.places.most_common(30)


class _Kernel:
    """Counts its launches and does nothing."""

    def __init__(self) -> None:
        self.launches = 0

    def __getitem__(self, _grid: object) -> Any:
        self.launches += 1
        return lambda *args, **options: None


_ROWS, _STATS = torch.ones(4, 16), torch.ones(4)
_KEYS = torch.arange(4)
OPERATORS = [
    (triton_residual_norm, "_forward", (_ROWS, _ROWS, _ROWS[0], _ROWS[0], _KEYS, 3, 1e-5, 20)),
    (triton_residual_norm, "_backward", (_ROWS.bfloat16(), _ROWS, _STATS, _STATS, _ROWS[0].bfloat16(), _KEYS, 3, 20)),
    (triton_hidden_dropout, "_dropped", (_ROWS, _KEYS, 3, 20, False)),
    (triton_softmax_rows, "_statistics", (_ROWS, _KEYS)),
    (triton_softmax_rows, "_error", (_ROWS, None, _KEYS, _STATS, _STATS, None)),
    (triton_softmax_rows, "_statistics_and_error", (_ROWS, None, _KEYS)),
    (triton_gumbel_max, "triton_best_ids", (_ROWS, _KEYS, 1.0, 0)),
]


@pytest.mark.parametrize(("module", "name", "inputs"), OPERATORS, ids=[f"{m.__name__}.{n}" for m, n, _ in OPERATORS])
def test_an_operator_launches_inside_what_the_count_says(
    module: Any, name: str, inputs: tuple[Any, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    operator = getattr(module, name)
    kernel = _Kernel()
    for attribute in (attribute for attribute in vars(module) if attribute.endswith("_kernel")):
        monkeypatch.setattr(module, attribute, kernel)
    with counted() as inside:
        operator._init_fn(*inputs)
    assert kernel.launches + inside.total == INSIDE.get(operator._qualname, 1)
