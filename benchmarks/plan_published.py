"""Planned against published step times, as a table: ``python benchmarks/plan_published.py``. Arithmetic, seconds.

Within a table of ``published_steps.py`` the GPU's rate is set so that the first row comes out exactly; all other rows
follow from the constants of ``megadeberta/plan/rates.py``.
"""

import sys
from collections.abc import Iterator
from dataclasses import replace

from published_steps import TABLES, Published, Table

from megadeberta.config.run import RunConfig
from megadeberta.layers.heads import MlmHead
from megadeberta.layers.micro_batch import MicroBatch
from megadeberta.layers.parameters import Shapes
from megadeberta.layers.shapes import shapes_of
from megadeberta.plan.cluster import Cluster
from megadeberta.plan.layout import Layout
from megadeberta.plan.rates import Assumptions
from megadeberta.plan.search import assess
from megadeberta.plan.stages import Recipe
from megadeberta.plan.timing import StepTime


def main() -> None:
    """Print one row per published one."""
    sys.stdout.write(
        "| table | row | GPUs | published s | planned s | planned / published |\n|---|---|---|---|---|---|\n"
    )
    for name, table in TABLES.items():
        for row, seconds in planned(table):
            gpus = row.degrees[0] * row.degrees[1] * row.degrees[2]
            cells = (name, row.name, str(gpus), f"{row.seconds:.3f}", f"{seconds:.3f}", f"{seconds / row.seconds:.2f}")
            sys.stdout.write(f"| {' | '.join(cells)} |\n")


def planned(table: Table) -> Iterator[tuple[Published, float]]:
    """Each row and its planned seconds; the first is calibrated on."""
    rate = calibrated(table)
    for row in table.rows:
        yield row, _seconds(table, row, rate)


def calibrated(table: Table) -> float:
    """The ``Cluster.tflops`` at which the first row takes what was published."""
    low, high = 1.0, 10_000.0
    for _ in range(40):
        middle = (low * high) ** 0.5
        if _seconds(table, table.rows[0], middle) > table.rows[0].seconds:
            low = middle
        else:
            high = middle
    return high


def _seconds(table: Table, row: Published, rate: float) -> float:
    time = step_time(table, row, rate)
    return time.total - time.bubble * (1 - 1 / row.virtual)


def step_time(table: Table, row: Published, rate: float) -> StepTime:
    """Of one row with this ``Cluster.tflops``."""
    tensor, pipeline, data = row.degrees
    layout = Layout(tensor, pipeline, data, table.zero, row.micro_batch, row.batch // (row.micro_batch * data))
    layout = replace(layout, activation_checkpointing=row.recomputes)
    gpus = min(table.gpus, layout.world_size)
    machine = Cluster(layout.world_size // gpus, gpus, 80, 0, table.intra, table.inter, rate, table.memory_bandwidth)
    # FSDP and Megatron's distributed optimizer: no loop over ranks in Python, gradients are scattered.
    others = Assumptions(
        zero3_seconds=0.0,
        hides_tensor=table.hides_tensor,
        hides_pipeline=table.overlap,
        hides_gather=table.overlap,
        scatters=True,
    )
    return assess(_recipe(_config(table, row)), layout, machine, "triton", others).time


class _PlainHead(MlmHead):
    """GPT's: the word table alone, without the dense layer of BERT's."""

    def own_parameters(self) -> Shapes:
        return {}

    def multiply_adds(self, batch: MicroBatch, *, rows: float) -> float:
        return rows * self.model.embedding_width * self.model.vocab_size

    def whole_multiply_adds(self, batch: MicroBatch) -> float:
        return 0.0


def _recipe(config: RunConfig) -> Recipe:
    recipe = Recipe(config)
    recipe.layers = [
        _PlainHead(layer.name, layer.model, ties=layer.ties, terms=layer.terms) if isinstance(layer, MlmHead) else layer
        for layer in recipe.layers
    ]
    recipe.shapes = shapes_of(recipe.layers)
    return recipe


def _config(table: Table, row: Published) -> RunConfig:
    zero = {"stage": table.zero, "overlap_comm": table.overlap}
    model = {
        "vocab_size": table.vocabulary,
        "hidden_size": row.hidden,
        "num_hidden_layers": row.layers,
        "num_attention_heads": row.heads,
        "intermediate_size": 4 * row.hidden,
        "max_position_embeddings": row.length,
        "relative_attention": False,
        "pos_att_type": [],
        "position_biased_input": True,
        "enhanced_mask_decoder": False,
    }
    block = {
        "train_batch_size": row.batch,
        "train_micro_batch_size_per_gpu": row.micro_batch,
        "zero_optimization": zero,
        table.precision: {"enabled": True},
        "communication_data_type": table.precision,
        "data_types": {"grad_accum_dtype": table.precision},
    }
    return RunConfig.model_validate(
        {
            "name": "published",
            "model": model,
            "data": {"train": "none", "tokenizer": "none", "sequence_length": row.length},
            "objective": {"name": "ar"},
            "optimizer": {"lr": 1e-4},
            "training": {"steps": 1, "output_dir": "none"},
            "deepspeed": block,
        }
    )


if __name__ == "__main__":
    main()
