"""Models, weight folders and run folders small enough to make in every test."""

import json
import shutil
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor

from megadeberta.checkpoint.collectives import SingleProcess
from megadeberta.checkpoint.durable import hash_file
from megadeberta.checkpoint.fragments import Fragment
from megadeberta.checkpoint.manifest import RunRecord, WorldLayout
from megadeberta.checkpoint.rank_share import Entry, RankContent, RankShare
from megadeberta.checkpoint.stages import save_at_once
from megadeberta.checkpoint.store import CheckpointStore
from megadeberta.config.model import ModelConfig
from megadeberta.config.objective import ObjectiveConfig
from megadeberta.layers.objectives import list_layers
from megadeberta.model.initialize import initialize
from megadeberta.model.whole import WholeModel
from tests.data_fixtures import NUM_PIECES
from tests.models import V1, padded_ids, tiny_v3

MASK_DECODER = {}
NO_MASK_DECODER = {"enhanced_mask_decoder": False}
CASES = {
    "v3": MASK_DECODER,
    "v3 without mask decoder": NO_MASK_DECODER,
    "v2 with convolution, separate projections": {"conv_kernel_size": 3, "share_att_key": False},
    "narrow word table": {"embedding_size": 12, **NO_MASK_DECODER},
    "v1": V1,
    "v1 without mask decoder": V1 | NO_MASK_DECODER,
    "v1, c2p alone": V1 | {"pos_att_type": "c2p"},
    "no key biases, but shared": {"key_bias": False},
    "input positions and token types": {
        "position_biased_input": True,
        "type_vocab_size": 2,
        "pos_att_type": "p2c",
        **NO_MASK_DECODER,
    },
    "no relative attention": {"relative_attention": False, "position_biased_input": True, **NO_MASK_DECODER},
}


def small_config(**changes: object) -> ModelConfig:
    """Three layers of width 24, four heads, distances up to 15 in 6 buckets."""
    base = {
        "vocab_size": NUM_PIECES + 8,
        "hidden_size": 24,
        "num_attention_heads": 4,
        "intermediate_size": 40,
        "max_position_embeddings": 32,
        "max_relative_positions": 16,
        "dropout": 0.1,
    }
    return tiny_v3(**base | changes)


def small_model(config: ModelConfig, *, seed: int = 1, objective: ObjectiveConfig = ObjectiveConfig()) -> WholeModel:
    """Random weights in every tensor, biases and LayerNorms too: a swapped name must change the output."""
    model = WholeModel(list_layers(config, objective)).eval()
    initialize(model, seed=seed, std=0.2)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter += torch.empty_like(parameter).normal_(0, 0.1, generator=generator)
    return model


def weights_of(model: WholeModel) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def write_weights_folder(folder: Path, model: WholeModel, config: ModelConfig, spm: Path) -> Path:
    """What ``convert import`` writes."""
    folder.mkdir(parents=True)
    safetensors.torch.save_file(weights_of(model), folder / "model.safetensors")
    (folder / "model.json").write_text(json.dumps(config.model_dump(mode="json")))
    shutil.copyfile(spm, folder / "spm.model")
    return folder


def write_checkpoint(
    output_dir: Path,
    model: WholeModel,
    config: ModelConfig,
    spm: Path,
    *,
    step: int,
    average: WholeModel | None = None,
    **sections: object,
) -> Path:
    """Commit a checkpoint through the store, with the files that a run puts in. ``sections``: of its recipe."""

    def write(folder: Path) -> dict:
        shutil.copyfile(spm, folder / "spm.model")
        return {"spm.model": hash_file(folder / "spm.model")}

    updates = None if average is None else 1.0
    entries = [
        Entry(
            state, Fragment(name=n, shape=tuple(t.shape), start=0, stop=t.numel(), updates=updates), t.flatten().numpy
        )
        for state, each in (("weight", model), ("average", average))
        if each is not None
        for n, t in weights_of(each).items()
    ]
    fragments = {entry.fragment.name: entry.fragment for entry in entries}
    share = RankShare(0, RankContent(fragments=tuple(fragments.values()), counters={}, scaler={}), entries)
    run = RunRecord(
        world=WorldLayout(world_size=1, data_parallel=1, zero_stage=1, precision="fp32"),
        versions={},
        fingerprint={},
        config={
            "name": "tiny",
            "model": config.model_dump(mode="json"),
            "data": {"train": "shards/train", "sequence_length": 32},
            "objective": {"mask_rate": 0.15},
            "optimizer": {"lr": 1e-3},
            "schedule": {"name": "cosine", "warmup_steps": 10},
            "training": {"steps": 1000, "seed": 7},
            "deepspeed": {"train_batch_size": 16},
            **sections,
        },
    )
    store = CheckpointStore(output_dir / "checkpoints", collectives=SingleProcess(), keep_last=9)
    return save_at_once(store.stages(step, share, run=run, write_more=write, required=True))


def padded_batch(config: ModelConfig, *, length: int = 13) -> tuple[Tensor, Tensor]:
    """Ids ``[3, length]`` and a mask: a whole row, one padded to 8, one to 3."""
    return padded_ids(config, lengths=(length, 8, 3), seed=3)
