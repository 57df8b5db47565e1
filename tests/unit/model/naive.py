"""DeBERTa by loops over batch, head, query and key, from the formulas: what the model is compared with.

Takes the parameters of a WholeModel by name and shares no code with it. Slow on purpose; float64, no dropout.

Shapes: L length · D hidden size · H head size.
"""

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from megadeberta.config.model import ModelConfig

Parameters = Mapping[str, Tensor]
Visible = Callable[[int, int], bool]
"""Whether the rules beside padding let query i attend key j."""


def bucket(r: int, buckets: int, farthest: int) -> int:
    m = buckets // 2
    r = max(1 - farthest, min(farthest - 1, r))
    if abs(r) <= m:
        return r
    v = m + math.ceil((m - 1) * math.log(abs(r) / m) / math.log((farthest - 1) / m) - 1e-9)
    return v if r > 0 else -v


def row(r: int, config: ModelConfig) -> int:
    farthest = config.max_relative_positions if config.max_relative_positions > 0 else config.max_position_embeddings
    if config.position_buckets < 1:
        return max(0, min(2 * farthest - 1, r + farthest))
    b = config.position_buckets
    return max(0, min(2 * b - 1, bucket(r, b, farthest) + b))


def norm(x: Tensor, p: Parameters, name: str, eps: float) -> Tensor:
    mean = x.mean()
    return (x - mean) / torch.sqrt(((x - mean) ** 2).mean() + eps) * p[f"{name}.weight"] + p[f"{name}.bias"]


def linear(x: Tensor, p: Parameters, name: str) -> Tensor:
    y = p[f"{name}.weight"] @ x
    return y + p[f"{name}.bias"] if f"{name}.bias" in p else y


def gelu(x: Tensor) -> Tensor:
    return 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))


class Naive:
    """One sequence at a time through one encoder whose parameters are ``prefix + name``."""

    def __init__(self, config: ModelConfig, parameters: Parameters, *, table: Tensor, prefix: str = "") -> None:
        """``table``: the word table the encoder reads, ``[V, D]``."""
        self.config, self.table = config, table
        self.p = {name.removeprefix(prefix): tensor for name, tensor in parameters.items() if name.startswith(prefix)}
        self.eps = config.layer_norm_eps

    def embed(self, ids: list[int], real: list[bool], starts: list[int]) -> list[Tensor]:
        out = []
        for i, token in enumerate(ids):
            x = self.table[token]
            if self.config.position_biased_input:
                x = x + self.p["embeddings.position_embeddings.weight"][i - starts[i]]
            if "embeddings.token_type_embeddings.weight" in self.p:
                x = x + self.p["embeddings.token_type_embeddings.weight"][0]
            if "embeddings.embed_proj.weight" in self.p:
                x = self.p["embeddings.embed_proj.weight"] @ x
            out.append(norm(x, self.p, "embeddings.layer_norm", self.eps) * float(real[i]))
        return out

    def relative(self) -> list[Tensor]:
        if not self.config.relative_attention:
            return []
        rows = list(self.p["relative.embedding.weight"])
        return [norm(r, self.p, "relative.layer_norm", self.eps) for r in rows] if self._normed else rows

    @property
    def _normed(self) -> bool:
        return self.config.norm_rel_ebd == "layer_norm"

    def layer(
        self, name: str, queries: dict[int, Tensor], source: list[Tensor], real: list[bool], visible: Visible
    ) -> dict[int, Tensor]:
        """Outputs at the query positions; keys and values are those of ``source``."""
        a = f"{name}.self_attention.attention"
        size, heads = self.config.head_size, self.config.num_attention_heads
        terms = self.config.pos_att_type if self.config.relative_attention else ()
        shared = self.config.share_att_key
        key_name, query_name = (
            (f"{a}.key_proj", f"{a}.query_proj") if shared else (f"{a}.pos_key_proj", f"{a}.pos_query_proj")
        )
        relative = self.relative()
        k = [linear(x, self.p, f"{a}.key_proj") for x in source]
        v = [linear(x, self.p, f"{a}.value_proj") for x in source]
        k_r = [linear(x, self.p, key_name) for x in relative] if "c2p" in terms else []
        q_r = [linear(x, self.p, query_name) for x in relative] if "p2c" in terms else []
        out = {}
        for i, stream in queries.items():
            q = linear(stream, self.p, f"{a}.query_proj")
            context = []
            for h in range(heads):
                part = slice(h * size, (h + 1) * size)
                seen = [j for j in range(len(source)) if real[j] and visible(i, j)]
                scores = []
                for j in seen:
                    s = (q[part] * k[j][part]).sum()
                    if k_r:
                        s = s + (q[part] * k_r[row(i - j, self.config)][part]).sum()
                    if q_r:
                        s = s + (k[j][part] * q_r[row(i - j, self.config)][part]).sum()
                    scores.append(s / math.sqrt(size * (1 + len(terms))))
                exps = [torch.exp(s - max(scores)) for s in scores]
                context.append(sum(e / sum(exps) * v[j][part] for e, j in zip(exps, seen, strict=True)))
            attended = linear(torch.cat(context), self.p, f"{name}.self_attention.dense") + stream
            y = norm(attended, self.p, f"{name}.self_attention.layer_norm", self.eps)
            inner = linear(gelu(linear(y, self.p, f"{name}.feed_forward.up")), self.p, f"{name}.feed_forward.down")
            out[i] = norm(inner + y, self.p, f"{name}.feed_forward.layer_norm", self.eps)
        return out

    def convolve(self, embedded: list[Tensor], hidden: dict[int, Tensor], starts: list[int]) -> dict[int, Tensor]:
        weight, bias = self.p["layer.0.convolution.conv.weight"], self.p["layer.0.convolution.conv.bias"]
        half, size = weight.size(2) // 2, self.config.conv_groups
        activation = gelu if self.config.conv_act == "gelu" else torch.tanh
        out = {}
        for i in hidden:
            c = bias
            for offset in range(-half, half + 1):
                j = i + offset
                if 0 <= j < len(embedded) and starts[j] == starts[i]:
                    groups = zip(weight[:, :, offset + half].chunk(size), embedded[j].chunk(size), strict=True)
                    c = c + torch.cat([block @ x for block, x in groups])
            out[i] = norm(hidden[i] + activation(c), self.p, "layer.0.convolution.layer_norm", self.eps)
        return out

    def encode(
        self, ids: list[int], real: list[bool], starts: list[int], visible: Visible, *, layers: int
    ) -> list[Tensor]:
        """Hidden states of the real tokens after ``layers`` layers; zeros at padding."""
        hidden = self.embed(ids, real, starts)
        for number in range(layers):
            name = f"layer.{number}"
            out = self.layer(name, {i: hidden[i] for i in range(len(ids)) if real[i]}, hidden, real, visible)
            if f"{name}.convolution.conv.weight" in self.p:
                out = self.convolve(hidden, out, starts)
            hidden = [out.get(i, torch.zeros_like(hidden[i])) for i in range(len(ids))]
        return hidden

    def decode(
        self, ids: list[int], real: list[bool], starts: list[int], visible: Visible, positions: list[int]
    ) -> dict[int, Tensor]:
        """What the prediction head reads at ``positions``: the mask decoder's two passes, or the last layer."""
        depth = self.config.num_hidden_layers
        if not self.config.enhanced_mask_decoder:
            hidden = self.encode(ids, real, starts, visible, layers=depth)
            return {i: hidden[i] for i in positions}
        below = self.encode(ids, real, starts, visible, layers=depth - 1)
        table = self.p["mask_decoder.position_embeddings.weight"]
        queries = {i: below[i] + table[i - starts[i]] for i in positions}
        for _ in range(2):
            queries = self.layer("mask_decoder.layer", queries, below, real, visible)
        return queries

    def predict(self, state: Tensor) -> Tensor:
        """Logits over the vocabulary, ``[V]``."""
        t = norm(gelu(linear(state, self.p, "mlm_head.dense")), self.p, "mlm_head.layer_norm", self.eps)
        return self.table @ t + self.p["mlm_head.decoder.bias"]

    def judge(self, hidden: list[Tensor], i: int, start: int) -> Tensor:
        """The replaced-token logit of token i whose document starts at ``start``."""
        u = norm(hidden[i] + hidden[start], self.p, "rtd_head.layer_norm", self.eps)
        return linear(gelu(linear(u, self.p, "rtd_head.dense")), self.p, "rtd_head.classifier")[0]


def cross_entropy(logits: Tensor, label: int) -> Tensor:
    return torch.log(torch.exp(logits - logits.max()).sum()) + logits.max() - logits[label]


def binary_cross_entropy(logit: Tensor, target: bool) -> Tensor:
    p = 1 / (1 + torch.exp(-logit))
    return -torch.log(p if target else 1 - p)
