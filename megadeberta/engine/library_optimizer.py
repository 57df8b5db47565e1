"""Optimizers of libraries that look at whole tensors: Muon makes a matrix orthogonal, LAMB and StableAdamW take norms.

A rank may hold a shard of a tensor (tensor parallelism), a range of that shard (ZeRO 1 and 2), or nothing of it. What
is divided is put together on the ranks that divide it, the library makes its step on the whole, and each rank keeps its
own part: so the result does not depend on the layout. What one rank has whole, under ZeRO most tensors, is updated in
place and only there. Moments stay where the weights are, and are divided as they are.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, distributed, nn

from megadeberta.config.training import RULES, OptimizerConfig, OptimizerName


@dataclass(frozen=True)
class HeldTensor:
    """What this rank has of a parameter, or has to help to put together. Shards are those of tensor parallelism."""

    flat: Tensor | None
    """What DeepSpeed gave the optimizer in place of it, the elements from ``offset`` on; None where it has none."""
    offset: int
    start: int
    stop: int
    """Elements ``[start, stop)`` of the flattened shard."""
    shape: tuple[int, ...]
    """Of the shard."""
    whole: tuple[int, ...]
    """Of the parameter."""
    dim: int
    first: int
    """Where the shard begins in ``dim`` of the whole."""
    data_group: distributed.ProcessGroup | None
    """The ranks that divide the shard; None where it is whole on those that hold it."""
    tensor_group: distributed.ProcessGroup | None
    """The ranks that have the other shards; None where the shard is the whole."""

    def part(self, tensor: Tensor) -> Tensor:
        """This rank's elements of ``flat``, or of a state of its form: a flat view."""
        return tensor.detach().view(-1)[self.offset : self.offset + self.stop - self.start]

    def gather(self, parts: Sequence[Tensor], like: Tensor, count: int) -> Tensor:
        """``[count, *whole]`` of what the ranks hold. All-reduces over the groups that divide it: zeros are added to
        every element, which changes none.

        Args:
            parts: of this rank, none where it has nothing of the tensor.
            like: of their type and device.
        """
        shard = like.new_zeros(count, *self.shape)
        for row, part in zip(shard.view(count, -1), parts, strict=False):
            row[self.start : self.stop] = part
        if self.data_group is not None:
            distributed.all_reduce(shard, group=self.data_group)
        if self.tensor_group is None:
            return shard
        whole = shard.new_zeros(count, *self.whole)
        self.of_shard(whole).copy_(shard)
        distributed.all_reduce(whole, group=self.tensor_group)
        return whole

    def of_shard(self, whole: Tensor) -> Tensor:
        """The shard of ``[n, *whole]``: a view ``[n, *shape]``."""
        return whole.narrow(1 + self.dim, self.first, self.shape[self.dim]) if self.tensor_group is not None else whole


class _KeepsItsType(Tensor):
    """A gradient that torch's Muon does not round: it makes its Newton-Schulz iteration in bf16, so that the last bit
    of an fp32 gradient, which the layout decides, moves weights by 1e-4 within 20 steps of a toy."""

    def bfloat16(self, memory_format: torch.memory_format = torch.preserve_format) -> Tensor:
        """Itself, copied as a conversion would do."""
        return self.clone()


class LibraryOptimizer(torch.optim.Optimizer):
    """One optimizer for DeepSpeed, which hands each parameter group to a library's.

    A group has ``rule``, a key of ``RULES``, and ``key``, by which ``place`` knows it. An elementwise rule works on
    what DeepSpeed made of the group; the others on whole tensors.
    """

    found_inf: Tensor | None = None
    """fp32 scalar, the same on every rank: 1 where this step is to change nothing (``engine/update_gate.py``)."""

    def __init__(self, groups: Iterable[dict[str, Any]], config: OptimizerConfig, *, is_half: bool) -> None:
        """``is_half``: forward and backward are in 16 bits, so that Muon's iteration may be too."""
        super().__init__(list(groups), {"lr": config.lr})
        self._libraries = {
            rule: _library(rule, config) for rule in dict.fromkeys(group["rule"] for group in self.param_groups)
        }
        self._is_half = is_half
        self._held: dict[Any, list[HeldTensor]] | None = None
        self._rules: dict[int, OptimizerName] = {}

    def rule_of(self, flat: Tensor) -> OptimizerName:
        """The rule that updates ``flat``, one of the tensors that DeepSpeed gave this optimizer."""
        if not self._rules:
            self._rules = {id(each): group["rule"] for group in self.param_groups for each in group["params"]}
        return self._rules[id(flat)]

    def place(self, held: dict[Any, list[HeldTensor]]) -> None:
        """Say where the tensors of each group are, by its ``key``, before the first step.

        Args:
            held: on all ranks that divide a tensor in the same order.
        """
        self._held = held

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """One step of the groups that have gradients. All-reduces over the groups of tensors that are divided; waits
        for the device where ``found_inf`` is given."""
        # DeepSpeed 0.19.8 steps on zeros while it makes its fp32 copies (fp16/unfused_optimizer.py): nothing is placed
        # then, and nothing is to be updated.
        is_refused = self.found_inf is not None and bool(self.found_inf)
        for group in () if self._held is None or is_refused else self.param_groups:
            library = self._libraries[group["rule"]]
            if RULES[group["rule"]].is_elementwise:
                library.state = self.state
                library.param_groups = [library.defaults | group]
                library.step()
            else:
                self._step_on_whole(library, group)

    def _step_on_whole(self, library: torch.optim.Optimizer, group: dict[str, Any]) -> None:
        assert self._held is not None
        moments = RULES[group["rule"]].moments
        flats = [flat for flat in group["params"] if flat.grad is not None]
        for flat in flats:
            if not self.state[flat]:
                self.state[flat] = {"step": 0, **{name: torch.zeros_like(flat) for name in moments}}
        for count, states in self._whole_tensors(group, moments):
            library.state = defaultdict(dict, states)
            library.param_groups = [library.defaults | group | {"params": list(states), "step": count}]
            library.step()
        for flat in flats:
            self.state[flat]["step"] += 1

    def _whole_tensors(
        self, group: dict[str, Any], moments: Sequence[str]
    ) -> Iterator[tuple[int, dict[Tensor, dict[str, Any]]]]:
        """The state of whole tensors by their weights, which have gradients, and how often they have been updated. What
        is changed in them stays."""
        assert self._held is not None
        ready: dict[int, dict[Tensor, dict[str, Any]]] = {}
        for held in self._held[group["key"]]:
            flat = held.flat
            if flat is not None and flat.grad is None:
                continue
            parts = [] if flat is None else [flat, flat.grad, *(self.state[flat][name] for name in moments)]
            mine = [held.part(part) for part in parts]
            if held.data_group is None and held.tensor_group is None:
                if flat is not None:
                    views = [part.view(held.shape) for part in mine]
                    ready.setdefault(self.state[flat]["step"], {}).update(self._as_state(views, moments))
                continue
            if flat is None and held.data_group is None:
                continue  # other data-parallel ranks have all shards of it
            whole = held.gather(mine, group["params"][0], 2 + len(moments))
            if flat is not None:
                yield self.state[flat]["step"], self._as_state(list(whole), moments)
                for part, changed in zip(mine, held.of_shard(whole), strict=True):
                    part.copy_(changed.reshape(-1)[held.start : held.stop])
        yield from ready.items()

    def _as_state(self, tensors: Sequence[Tensor], moments: Sequence[str]) -> dict[Tensor, dict[str, Any]]:
        weight = nn.Parameter(tensors[0], requires_grad=False)
        weight.grad = tensors[1] if self._is_half else tensors[1].as_subclass(_KeepsItsType)
        return {weight: dict(zip(moments, tensors[2:], strict=True))}


def _library(rule: OptimizerName, config: OptimizerConfig) -> torch.optim.Optimizer:
    """The library's optimizer of a rule; its tensors come with each step.

    LAMB is the form of You et al. 2020, Algorithm 2: decay inside the trust ratio, no bias correction, the norm of the
    weights at most 10 (https://arxiv.org/abs/1904.00962). StableAdamW is of Wortsman et al. 2023, section 3.5
    (https://arxiv.org/abs/2304.13013). Muon's update is scaled to the size of AdamW's (Liu et al. 2025, section 2.2,
    https://arxiv.org/abs/2502.16982), so that one learning rate serves both.
    """
    example = [nn.Parameter(torch.zeros(1, 1))]
    betas, eps = (config.beta1, config.beta2), config.eps
    if rule == "muon":
        return torch.optim.Muon(example, momentum=config.momentum, adjust_lr_fn="match_rms_adamw")
    if rule == "adamw":
        return torch.optim.AdamW(example, betas=betas, eps=eps, fused=True)
    import pytorch_optimizer  # slow to import: it brings transformers

    if rule == "lamb":
        return pytorch_optimizer.Lamb(
            example, betas=betas, eps=eps, weight_decouple=False, adam_debias=True, foreach=False
        )
    return pytorch_optimizer.StableAdamW(example, betas=betas, eps=eps, kahan_sum=False, foreach=False)
