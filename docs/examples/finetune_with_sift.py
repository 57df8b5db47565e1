"""Fine-tune an exported encoder on labelled sentences, with scale-invariant fine-tuning (SiFT; DeBERTa paper, 4).

python docs/examples/finetune_with_sift.py exported sentences.tsv tuned --epochs 3

Each line of the file is a label (0, 1, ...), a tab and a sentence. SiFT adds to the task's loss how much the
predictions move when the normalised word embeddings are pushed a little in the direction that moves them most
(microsoft/DeBERTa ``sift.py``).

Shapes: B batch · L length · D hidden size · C classes.
"""

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedModel

EPS = 1e-7


class Sift:
    """Perturbs the input of one model's embedding LayerNorm, which it first normalises without weights.

    Args:
        start: the first perturbation is normal(0, start), clipped at twice that.
        step: no element of a token's perturbation moves further than this along the gradient.
    """

    def __init__(self, model: PreTrainedModel, *, start: float = 1e-2, step: float = 1e-4) -> None:
        self.start, self.step = start, step
        self.delta: Tensor | None = None
        self.normalised = torch.empty(0)
        layer_norm = getattr(model, model.base_model_prefix).embeddings.LayerNorm
        self._hook = layer_norm.register_forward_pre_hook(self._normalise_and_perturb)

    def remove(self) -> None:
        """Leave the model as it was."""
        self._hook.remove()

    def _normalise_and_perturb(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> Tensor:
        if self.delta is None:
            hidden = inputs[0]
            self.normalised = functional.layer_norm(hidden, hidden.shape[-1:], eps=EPS)
            return self.normalised
        # Detached: the perturbed pass trains everything above the word table, and not the table.
        return self.normalised.detach() + self.delta

    def loss(self, logits_of: Callable[[], Tensor], clean: Tensor) -> Tensor:
        """Mean over the batch of how far the worst small perturbation moves the predictions.

        Args:
            logits_of: runs the model on the batch of the last clean pass, ``[B, C]``.
            clean: what that pass gave.
        """
        try:
            self.delta = self._worst(logits_of, clean.detach())
            return symmetric_divergence(logits_of(), clean).mean()
        finally:
            self.delta = None

    def _worst(self, logits_of: Callable[[], Tensor], clean: Tensor) -> Tensor:
        noise = torch.randn(self.normalised.shape, device=clean.device) * self.start
        first = noise.clamp_(-2 * self.start, 2 * self.start).requires_grad_()
        self.delta = first
        (gradient,) = torch.autograd.grad(symmetric_divergence(logits_of(), clean).sum(), first)
        if not gradient.isfinite().all():
            return first.detach()
        largest = gradient.abs().amax(-1, keepdim=True)
        return first.detach() + self.step * gradient / (1e-6 + largest)


def symmetric_divergence(logits: Tensor, others: Tensor) -> Tensor:
    """Cross entropy of each pair's predictions both ways, the target of each detached: ``[B, C]`` twice -> ``[B]``."""
    log_p, log_q = logits.float().log_softmax(-1), others.float().log_softmax(-1)
    return -(log_q.exp().detach() * log_p).sum(-1) - (log_p.exp().detach() * log_q).sum(-1)


def predict(model: PreTrainedModel, inputs: dict[str, Tensor]) -> Tensor:
    """Logits ``[B, C]`` of one batch."""
    return model(**inputs).logits


def fine_tune(folder: Path, sentences: list[str], labels: list[int], options: argparse.Namespace) -> PreTrainedModel:
    """The encoder in ``folder`` with a fresh classification head, trained on the labelled sentences."""
    torch.manual_seed(options.seed)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=max(labels) + 1).train()
    sift = Sift(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=options.lr, weight_decay=0.01)
    for epoch in range(options.epochs):
        total, pushed, right = 0.0, 0.0, 0
        for chosen in torch.randperm(len(sentences)).split(options.batch_size):
            texts = [sentences[i] for i in chosen.tolist()]
            batch = tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
            inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
            targets = torch.tensor([labels[i] for i in chosen.tolist()])
            logits = predict(model, inputs)
            task = functional.cross_entropy(logits, targets)
            moved = sift.loss(partial(predict, model, inputs), logits)
            optimizer.zero_grad()
            (task + options.weight * moved).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            total += task.item() * len(texts)
            pushed += moved.item() * len(texts)
            right += int((logits.argmax(-1) == targets).sum())
        of_all = (number / len(sentences) for number in (total, pushed, right))
        print("epoch {} loss {:.4f} SiFT {:.4f} accuracy {:.3f}".format(epoch + 1, *of_all))
    return model.eval()


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("sentences", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--lr", type=float, default=2e-5)
    parser.add_argument("--weight", type=float, default=5.0, help="of SiFT's loss")
    parser.add_argument("--seed", type=int, default=1234)
    options = parser.parse_args(arguments)
    pairs = [line.split("\t", 1) for line in options.sentences.read_text(encoding="utf-8").splitlines() if line]
    model = fine_tune(options.folder, [text for _, text in pairs], [int(label) for label, _ in pairs], options)
    model.save_pretrained(options.out)
    AutoTokenizer.from_pretrained(options.folder).save_pretrained(options.out)


if __name__ == "__main__":
    main()
