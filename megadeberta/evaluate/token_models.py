"""Models that predict masked tokens: ours, with the mask decoder, and every masked model of transformers.

Shapes: R rows of a batch · L length · V vocabulary.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from megadeberta.convert.any_model import load_model
from megadeberta.convert.formats.families import FAMILIES
from megadeberta.data.tokenizer import load_tokenizer
from megadeberta.errors import CheckpointError
from megadeberta.evaluate.minimal_pairs import Sentence, TokenModel
from megadeberta.layers.catalogue import token_model_layers
from megadeberta.model.whole import WholeModel
from megadeberta.weights.hub import find_model
from megadeberta.weights.source import ModelSource


class OwnModel:
    """Of two parts, the generator; with the enhanced mask decoder, where the model has it."""

    def __init__(self, source: ModelSource) -> None:
        """
        Raises:
            CheckpointError: the weights predict no masked tokens, or have no tokenizer.
        """
        part = source.token_model()
        self._vocabulary = load_tokenizer(part.checked_tokenizer())
        self.mask_id = self._vocabulary.mask_id
        reads_places = part.config.position_biased_input or part.config.enhanced_mask_decoder
        self.longest = part.config.max_position_embeddings if reads_places else None
        model = WholeModel(token_model_layers(part.config)).eval()
        model.load_state_dict(part.weights, strict=False)  # strict would want the tied decoder twice
        self._device = _device()
        self._model = model.to(self._device)

    def encode(self, texts: Sequence[str]) -> list[Sentence]:
        first, last = self._vocabulary.cls_id, self._vocabulary.sep_id
        found = [(first, *ids.tolist(), last) for ids in self._vocabulary.encode_batch(texts)]
        return [Sentence(ids, tuple(range(1, len(ids) - 1))) for ids in found]

    def logits(self, ids: Tensor, places: Tensor) -> Tensor:
        ids, places = ids.to(self._device), places.to(self._device)
        return self._model.mlm_logits(ids, torch.ones_like(ids), places[:, None])[:, 0]


class TransformersModel:
    """A model of ``AutoModelForMaskedLM`` with its own tokenizer."""

    def __init__(self, folder: Path) -> None:
        """
        Raises:
            CheckpointError: transformers cannot load it, it is no masked model, or has no tokenizer with a mask.
        """
        from transformers import AutoModelForMaskedLM, AutoTokenizer

        from megadeberta.convert.quiet import quiet_transformers

        options: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
        try:
            with quiet_transformers():
                self._tokenizer: Any = AutoTokenizer.from_pretrained(folder, **options)
                self._model, info = AutoModelForMaskedLM.from_pretrained(
                    folder, dtype=torch.float32, output_loading_info=True, **options
                )
        except (OSError, ValueError, KeyError, RuntimeError, TypeError) as error:
            reason = " ".join(str(error).split())[:200]
            raise CheckpointError(f"{folder}: transformers cannot load it as a masked model ({reason})") from None
        if info["missing_keys"]:
            raise CheckpointError(
                f"{folder}: has no {sorted(info['missing_keys'])[0]}, so it predicts no masked tokens"
            )
        if self._tokenizer.mask_token_id is None:
            raise CheckpointError(f"{folder}: its tokenizer has no mask; give a masked model")
        self.mask_id = int(self._tokenizer.mask_token_id)
        self.longest: int | None = getattr(self._model.config, "max_position_embeddings", None)
        self._device = _device()
        self._model = self._model.eval().to(self._device)

    def encode(self, texts: Sequence[str]) -> list[Sentence]:
        encoded = self._tokenizer(list(texts), return_special_tokens_mask=True)
        pairs = zip(encoded["input_ids"], encoded["special_tokens_mask"], strict=True)
        return [
            Sentence(tuple(ids), tuple(place for place, is_special in enumerate(mask) if not is_special))
            for ids, mask in pairs
        ]

    def logits(self, ids: Tensor, places: Tensor) -> Tensor:
        ids = ids.to(self._device)
        logits: Tensor = self._model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits  # [R, L, V]
        return logits[torch.arange(len(ids), device=self._device), places.to(self._device)]


def open_token_model(place: Path) -> tuple[TokenModel, str, int | None]:
    """The model at a place, its folder, and the step of its run if there was one.

    Args:
        place: see :func:`megadeberta.convert.any_model.load_model`; or any masked model of transformers.

    Raises:
        CheckpointError: no model there that predicts masked tokens.
    """
    folder = find_model(place)
    if _is_of_others(folder):
        return TransformersModel(folder), str(place), None
    source = load_model(place, parts=False)
    return OwnModel(source), str(source.folder), source.run.get("step")


def _is_of_others(folder: Path) -> bool:
    path = folder / "config.json"
    if not path.is_file():
        return False
    try:
        model_type = json.loads(path.read_bytes()).get("model_type")
    except (OSError, ValueError, AttributeError):
        return False
    return model_type is not None and model_type not in {family.model_type for family in FAMILIES}


def _device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"
