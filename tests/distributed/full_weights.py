"""Whole parameters out of an engine, by DeepSpeed's own gathers: to compare with what checkpoints hold."""

import torch
from deepspeed import DeepSpeedEngine
from deepspeed.utils import safe_get_full_fp32_param
from torch import Tensor


def gather_weights(engine: DeepSpeedEngine) -> dict[str, Tensor]:
    """Every parameter under its global name, fp32; on rank 0, the others give nothing. One gather each under ZeRO."""
    weights = {}
    for name, parameter in engine.module.named_parameters():
        full = safe_get_full_fp32_param(parameter)
        if full is None:  # ZeRO-0: the parameter is whole here
            full = parameter.detach()
        if engine.global_rank == 0:
            # ZeRO-3 leaves an empty tensor in place of a partitioned parameter and its shape in ``ds_shape``.
            shape = getattr(parameter, "ds_shape", parameter.shape)
            weights[name] = full.detach().to("cpu", torch.float32, copy=True).view(shape)
    return weights
