"""``model.onnx`` of an export: what transformers computes, for runtimes without torch. Packages of the extra ``onnx``.

Shapes: B batch · L length.
"""

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from megadeberta.config.model import ModelConfig
from megadeberta.convert.formats.family import ExportTarget, ModelKind
from megadeberta.convert.reload_check import TOLERANCE, Finding, load_export
from megadeberta.errors import CheckpointError

ONNX_FILE = "model.onnx"
_SHAPES = ((1, 1), (1, 7), (3, 16), (2, 29))
"""Batch and length of the comparisons: none is that of the tracing."""

_CARD = """
## ONNX

`{file}` computes the same for any batch and length: {inputs} (int64) to {output}. With onnxruntime:
`InferenceSession("{file}").run(None, feed)`, where `feed` has these arrays of `tokenizer(texts, return_tensors="np")`.
"""


class _Outputs(nn.Module):
    """A model of transformers with tensors in and one tensor out: logits, or states of an encoder."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None) -> Tensor:
        return self.model(
            input_ids=input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids, return_dict=False
        )[0]


def write_onnx(folder: Path, target: ExportTarget, config: ModelConfig) -> Finding:
    """Write ``model.onnx`` beside the weights of a finished export, for any batch and length, and compare it.

    Raises:
        CheckpointError: torch cannot express the model, or onnxruntime computes something else; with the reason.
    """
    import onnxruntime

    model = _Outputs(load_export(folder, target, config)).eval()
    output = "logits" if target.kind == ModelKind.MLM else "last_hidden_state"
    try:
        with _quiet():
            _trace(model, config, output).save(folder / ONNX_FILE)
        session = onnxruntime.InferenceSession(folder / ONNX_FILE, providers=["CPUExecutionProvider"])
    except Exception as error:  # of three packages, in words of their own
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(
            f"{folder}: this model cannot be written as ONNX ({reason}); export without --onnx"
        ) from None
    worst = max(_difference(session, model, config, *shape) for shape in _SHAPES)
    if not worst <= TOLERANCE:
        raise CheckpointError(f"{folder / ONNX_FILE}: {output} differ from torch's by {worst:.1e} of the largest")
    with (folder / "README.md").open("a", encoding="utf-8") as card:
        card.write(_CARD.format(file=ONNX_FILE, inputs=", ".join(_inputs(config, 1, 1)), output=output))
    return Finding(ONNX_FILE, f"{output} of onnxruntime equal to torch's within {worst:.1e}, {len(_SHAPES)} shapes")


def _trace(model: nn.Module, config: ModelConfig, output: str) -> Any:
    batch = torch.export.Dim("batch")
    has_positions = config.position_biased_input or config.enhanced_mask_decoder
    longest = {"max": config.max_position_embeddings} if has_positions else {}
    length = torch.export.Dim("length", **longest)
    inputs = _inputs(config, 2, min(9, config.max_position_embeddings))
    return torch.onnx.export(
        model,
        tuple(inputs.values()),
        dynamo=True,
        input_names=list(inputs),
        output_names=[output],
        dynamic_shapes={name: {0: batch, 1: length} for name in inputs},
        verbose=False,
    )


def _inputs(config: ModelConfig, batch: int, length: int) -> dict[str, Tensor]:
    """Random ids ``[B, L]`` and a mask; the second row is padded."""
    generator = torch.Generator().manual_seed(batch * 1000 + length)
    ids = torch.randint(1, config.vocab_size, (batch, length), generator=generator)
    mask = torch.ones_like(ids)
    mask[1:, length * 2 // 3 :] = 0
    types = {"token_type_ids": torch.ones_like(ids)} if config.type_vocab_size else {}
    return {"input_ids": ids * mask, "attention_mask": mask} | types


def _difference(session: Any, model: nn.Module, config: ModelConfig, batch: int, length: int) -> float:
    """Largest difference at real tokens, relative to the largest value, or absolute below one."""
    inputs = _inputs(config, batch, min(length, config.max_position_embeddings))
    found = torch.from_numpy(session.run(None, {name: tensor.numpy() for name, tensor in inputs.items()})[0])
    with torch.no_grad():
        expected = model(**inputs)
    real = inputs["attention_mask"].bool()
    return float((found - expected)[real].abs().max() / max(1.0, float(expected[real].abs().max())))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter reports on stdout, through warnings and through log lines of three packages; none is for a user."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
