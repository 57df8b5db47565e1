"""Weights of ours on disk: a checkpoint of a run, or a folder that ``convert import`` wrote."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from megadeberta.checkpoint.content import CheckpointContent
from megadeberta.checkpoint.newest import checkpoint_at
from megadeberta.config.model import ModelConfig
from megadeberta.config.objective import DISCRIMINATOR, GENERATOR, ObjectiveConfig
from megadeberta.config.set_files import tokenizer_in
from megadeberta.errors import CheckpointError
from megadeberta.layers.layer import Layer
from megadeberta.layers.objectives import list_layers, objective_of
from megadeberta.layers.shapes import parameter_shapes
from megadeberta.weights.hub import MODEL_JSON, check_ours
from megadeberta.weights.parts import split_parts
from megadeberta.weights.recorded import check_has_tokenizer, imported_sections, lacks, mask_head, parts_of, sections_of
from megadeberta.weights.safetensors_file import SAFETENSORS
from megadeberta.weights.shapes import compare_shapes, shapes_of
from megadeberta.weights.tensor_file import check_finite, read_tensor_file
from megadeberta.weights.vocabulary import check_tokenizer_fits


@dataclass(frozen=True)
class ModelSource:
    """Whole, checked weights of one model, on the CPU in fp32, by the names that its objective's layers have."""

    folder: Path
    config: ModelConfig
    weights: dict[str, Tensor]
    tokenizer: Path | None
    """The tokenizer beside the weights."""
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    run: dict[str, Any] = field(default_factory=dict)
    """Of the run that the weights come from, if any: ``step``, the resolved ``config``, ``world`` and ``hardware``."""
    part: str = ""
    """Which part of a model of several these weights are; "" for the whole."""

    @property
    def parts(self) -> tuple[str, ...]:
        """The parts that the objective trains; none where it trains one model."""
        return parts_of(self.config, self.objective)

    def checked_tokenizer(self) -> Path:
        """The tokenizer, which belongs to these weights as far as can be told.

        Raises:
            CheckpointError: there is none, or it is that of other weights.
            DataError: it is no tokenizer with the special ids of these models.
        """
        tokenizer = check_has_tokenizer(self.folder, self.tokenizer)
        check_tokenizer_fits(tokenizer, self.config)
        return tokenizer

    def token_model(self) -> "ModelSource":
        """The model that predicts masked tokens: of two parts, the generator.

        Raises:
            CheckpointError: the objective trains no such head, or only on next tokens.
        """
        layers = list_layers(self.config, self.objective)
        head = mask_head(self.folder, layers, self.objective)
        return self._part(head.part, [layer for layer in layers if layer is head or not layer.is_head])

    def encoder_model(self) -> "ModelSource":
        """The encoder that training was for, with whole tables: of several parts, that of the last."""
        layers = list_layers(self.config, self.objective)
        return self._part(layers[-1].part, [layer for layer in layers if not layer.is_head])

    def discriminator_model(self) -> "ModelSource":
        """The discriminator with its head, whole tables, and its differences from the generator's beside them.

        Raises:
            CheckpointError: there is none.
        """
        layers = list_layers(self.config, self.objective)
        if not any(layer.part == DISCRIMINATOR for layer in layers):
            raise lacks(self.folder, self.config, self.objective, DISCRIMINATOR)
        prefix = f"{DISCRIMINATOR}."
        differences = {n.removeprefix(prefix): t for n, t in self.weights.items() if n.endswith(".delta")}
        found = self._part(DISCRIMINATOR, layers)
        return dataclasses.replace(found, weights=found.weights | differences)

    def _part(self, part: str, layers: Sequence[Layer]) -> "ModelSource":
        """The tensors of these layers of one part, under the names that they have as the only model."""
        weights = (
            dict(zip((GENERATOR, DISCRIMINATOR), split_parts(self.weights), strict=True))[part]
            if part
            else self.weights
        )
        names = tuple(f"{layer.name.removeprefix(f'{part}.')}." for layer in layers if layer.part == part)
        config = objective_of(self.objective).models(self.config, self.objective)[part]
        kept = {name: tensor for name, tensor in weights.items() if name.startswith(names)}
        return dataclasses.replace(self, config=config, weights=kept, objective=ObjectiveConfig(), part=part)


def load_weights(path: Path) -> ModelSource:
    """Read and verify the weights at ``path``.

    Args:
        path: the output folder of a run (its newest sound checkpoint is taken), one ``step-N`` folder, or a folder
            written by ``convert import``.

    Raises:
        CheckpointError: nothing there, not sound, or the weights do not fit the configuration beside them.
    """
    check_ours(path)
    if (path / MODEL_JSON).is_file():
        config, objective = imported_sections(path)
        weights = _imported_weights(path / SAFETENSORS)
        return _complete(path, config, objective, weights=weights, run={})
    folder, manifest = checkpoint_at(path)
    config, objective = sections_of(manifest, folder)
    record = manifest.run
    run = {"step": manifest.step, "config": record.config, "hardware": record.hardware}
    run["world"] = record.world.model_dump(mode="json")
    weights = {name: torch.from_numpy(values) for name, values in CheckpointContent(folder).whole()}
    return _complete(folder, config, objective, weights=weights, run=run)


def _imported_weights(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise CheckpointError(f"{path}: is missing; the folder holds no weights by our names")
    return {name: tensor.float() for name, tensor in read_tensor_file(path).items()}


def _complete(
    folder: Path,
    config: ModelConfig,
    objective: ObjectiveConfig,
    *,
    weights: dict[str, Tensor],
    run: dict[str, Any],
) -> ModelSource:
    compare_shapes(parameter_shapes(config, objective), shapes_of(weights), str(folder))
    check_finite(weights, str(folder))
    tokenizer = tokenizer_in(folder)
    return ModelSource(folder, config, weights, tokenizer if tokenizer.is_file() else None, objective, run)
