"""Which file of a folder holds a model's weights, by its name. Never torch: a mistake in a name is said at once."""

from pathlib import Path

from megadeberta.errors import CheckpointError
from megadeberta.weights.safetensors_file import SAFETENSORS

PICKLED = "pytorch_model.bin"
_CANDIDATES = (SAFETENSORS, f"{SAFETENSORS}.index.json", PICKLED, f"{PICKLED}.index.json")
_OF_MICROSOFT_RUNS = "pytorch.model*.bin"
"""microsoft/DeBERTa ``trainer.py`` and its release archives."""
_OF_OTHERS = {
    "*.h5": "of TensorFlow",
    "*.msgpack": "of Flax",
    "*.gguf": "of llama.cpp",
    "*.onnx": "of ONNX",
    "*.ckpt*": "a checkpoint of another trainer",
    "adapter_model.*": "an adapter (PEFT)",
}


def weights_path(place: Path) -> Path:
    """A file of weights as it is; of a folder the file, or the index of several, that holds them.

    Raises:
        CheckpointError: none does, or several do.
    """
    if place.is_file():
        return place
    if known := [name for name in _CANDIDATES if (place / name).is_file()]:
        return place / known[0]
    names = sorted(path.name for path in place.glob(_OF_MICROSOFT_RUNS))
    if len(names) > 1:
        raise CheckpointError(
            f"{place}: holds {len(names)} checkpoints, {names[0]} to {names[-1]}; leave only the one to be read"
        )
    if not names:
        names_read = ", ".join((*_CANDIDATES, _OF_MICROSOFT_RUNS))
        raise CheckpointError(f"{place}: holds none of {names_read}{_of_others(place)}")
    return place / names[0]


def _of_others(place: Path) -> str:
    for pattern, what in _OF_OTHERS.items():
        for path in sorted(place.glob(pattern)):
            return f"; {path.name} is {what}: save the whole model with torch and transformers' save_pretrained"
    return "; give a folder with a model's weights"
