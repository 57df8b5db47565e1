"""Switch an export's attention to megadeberta's, and see that nothing but the time changes.

    python docs/examples/fast_attention.py runs/quickstart/export [--backend auto] [--length 128] [--batch-size 8]

Takes any folder that AutoModelForSequenceClassification loads a DeBERTa from. Prints how far logits and gradients are
from transformers' own attention, and the seconds of a forward and of a forward and backward pass under both.
"""

import argparse
import time
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from megadeberta.hf import use_eager_attention, use_fast_attention


def draw_batch(vocab_size: int, batch_size: int, length: int) -> dict[str, Tensor]:
    """Random tokens, the sequences of different lengths."""
    ids = torch.randint(5, vocab_size, (batch_size, length))
    lengths = torch.randint(length // 2, length + 1, (batch_size, 1))
    mask = (torch.arange(length) < lengths).long()
    return {"input_ids": ids, "attention_mask": mask, "labels": torch.arange(batch_size) % 2}


def forward_and_backward(model: PreTrainedModel, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Logits, and all gradients in one vector."""
    model.zero_grad()
    output = model(**batch)
    output.loss.backward()
    grads = [p.grad.flatten().clone() for p in model.parameters() if p.grad is not None]
    return output.logits.detach(), torch.cat(grads)


def seconds_of(model: PreTrainedModel, batch: dict[str, Tensor]) -> tuple[float, float]:
    """Of a forward pass, and of forward and backward, the second time that they run."""
    times = []
    for train in (False, False, True, True):
        started = time.perf_counter()
        if train:
            forward_and_backward(model, batch)
        else:
            with torch.inference_mode():
                model(**batch)
        times.append(time.perf_counter() - started)
    return times[1], times[3]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--length", type=int, default=128)
    options = parser.parse_args(arguments)
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_pretrained(options.folder, num_labels=2).eval()
    batch = draw_batch(model.config.vocab_size, options.batch_size, options.length)
    expected, eager = forward_and_backward(model, batch), seconds_of(model, batch)

    use_fast_attention(model, options.backend)  # the line
    found, fast = forward_and_backward(model, batch), seconds_of(model, batch)

    for what, theirs, ours in zip(("logits", "gradients"), expected, found, strict=True):
        print(f"{what}: relative difference {(theirs - ours).norm() / theirs.norm():.1e}")
    for what, slow, quick in zip(("forward", "forward and backward"), eager, fast, strict=True):
        print(f"{what}: {slow:.3f} s eager, {quick:.3f} s fast")
    use_eager_attention(model)  # and back


if __name__ == "__main__":
    main()
