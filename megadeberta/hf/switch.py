"""Switching the attention of a model of transformers, and back."""

import inspect
from collections.abc import Collection, Iterator
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import TypeVar

from torch import Tensor, nn

from megadeberta.errors import ConfigError
from megadeberta.hf.backend import check_setting
from megadeberta.ops.attention.backends import AUTO

Model = TypeVar("Model", bound=nn.Module)


def use_fast_attention(model: Model, backend: str = AUTO) -> Model:
    """Let every DeBERTa encoder (v1, v2, v3) inside ``model`` run megadeberta's attention; returns ``model`` itself.

    For any head of transformers and any model around one, for training and inference, on CPUs and GPUs; called again it
    only changes the backend. Outputs and gradients equal transformers' eager attention up to rounding. Parameters,
    names and saved files do not change, and ``use_eager_attention`` undoes it. A call that the op cannot do, such as
    ``output_attentions=True``, runs transformers' attention and warns once.

    Attention dropout takes its seed from torch's generator, so ``torch.manual_seed`` repeats it, but it drops other
    weights than eager does, with a rate rounded to a multiple of 1/256 (0.1 becomes 26/256) and scaled by exactly what
    is kept. Rows that may attend to nothing (padding) get the mean of all values as in eager, without dropout.

    Args:
        backend: "auto" for the trainer's choice (CPU op on a CPU, on a GPU the Triton kernels if a trial finds them
            right and faster, else the plain torch reference), or a name of ``megadeberta.ops.attention.backends``.

    Raises:
        ConfigError: transformers is missing or of another structure; ``model`` holds no DeBERTa encoder, or one that
            the op cannot compute; the backend does not exist, or does not run where the model is.
    """
    fast = _load_fast()
    pairs = _modules_to_switch(model, fast)
    weights = {id(module): _first_weight(module) for module, _ in pairs}
    check_setting(backend, {weight.device.type for weight in weights.values()})
    for module, wanted in pairs:
        module.__class__ = wanted
    for module, _ in pairs:
        if isinstance(module, fast.FastEncoder):
            weight = weights[id(module)]
            module.choose(backend, weight.device, weight.dtype)
    return model


def use_eager_attention(model: Model) -> Model:
    """Give ``model`` transformers' own attention back; nothing happens where it has it. Returns ``model`` itself.

    Raises:
        ConfigError: transformers is missing, or what was put on top since, a class or a ``forward``, has to go first.
    """
    fast = _load_fast()
    switched = [m for m in model.modules() if isinstance(m, fast.FastEncoder | fast.FastAttention)]
    for module in switched:
        _check_class(module, _classes(fast).values())
        _check_forward(module)
    for module in switched:
        module.__class__ = module.EAGER
        del module.choice
    return model


def _load_fast() -> ModuleType:
    """The module with our subclasses, which imports transformers.

    Raises:
        ConfigError: transformers is missing or of another structure.
    """
    if find_spec("transformers") is None:
        raise ConfigError("transformers is not installed: its models are what this is for; pip install transformers")
    try:
        fast = import_module("megadeberta.hf.attention")
    except (ImportError, AttributeError) as error:
        raise _other_structure(str(error)) from error
    for eager in (fast.FastAttentionV1.EAGER, fast.FastAttentionV2.EAGER):
        found, wanted = (list(inspect.signature(c.forward).parameters) for c in (eager, fast.FastAttention))
        if found != wanted:
            raise _other_structure(f"{eager.__module__}.{eager.__name__} takes {', '.join(found[1:])}")
    return fast


def _modules_to_switch(model: nn.Module, fast: ModuleType) -> list[tuple[nn.Module, type[nn.Module]]]:
    """Attention modules and encoders of ``model`` and the class that each one gets: all are checked before any changes.

    Raises:
        ConfigError: see ``use_fast_attention``.
    """
    classes = _classes(fast)
    all_encoders = [m for m in model.modules() if isinstance(m, (fast.FastEncoderV1.EAGER, fast.FastEncoderV2.EAGER))]
    encoders = [encoder for encoder in all_encoders if len(encoder.layer)]
    if not encoders:
        raise ConfigError(
            f"{type(model).__name__} holds no DeBERTa encoder of transformers (DebertaModel, DebertaV2Model)"
        )
    found = [*encoders, *(layer.attention.self for encoder in encoders for layer in encoder.layer)]
    for module in found:
        _check_class(module, [*classes, *classes.values()])
        _check_forward(module)
        for problem in _unsupported(module):
            raise ConfigError(f"the fast attention has no {problem}; nothing was changed")
    return [(module, classes.get(type(module), type(module))) for module in found]


def _classes(fast: ModuleType) -> dict[type[nn.Module], type[nn.Module]]:
    """transformers' class -> ours."""
    ours = (fast.FastAttentionV1, fast.FastAttentionV2, fast.FastEncoderV1, fast.FastEncoderV2)
    return {each.EAGER: each for each in ours}


def _first_weight(module: nn.Module) -> Tensor:
    """That tells the device and the precision; quantised weights do not."""
    return next(parameter for parameter in module.parameters() if parameter.is_floating_point())


def _check_class(module: nn.Module, known: Collection[type[nn.Module]]) -> None:
    """FSDP's ``fully_shard`` changes classes too, and other packages put their own attention in."""
    own = type(module)
    if own not in known:
        raise ConfigError(
            f"{own.__module__}.{own.__name__} is neither transformers' attention nor megadeberta's; switch before "
            "anything else replaces it; nothing was changed"
        )


def _check_forward(module: nn.Module) -> None:
    if "forward" in vars(module):
        raise ConfigError(
            f"the forward of a {type(module).__name__} was replaced in the instance, as hooks of accelerate do; switch "
            "the attention first and add the hooks afterwards"
        )


def _unsupported(module: nn.Module) -> Iterator[str]:
    """What of a model's configuration no backend computes; v1's alone has such things."""
    if getattr(module, "talking_head", False):
        yield "talking heads (talking_head=True)"
    terms = getattr(module, "pos_att_type", [])
    if hasattr(module, "in_proj") and (len(set(terms)) != len(terms) or not {"c2p", "p2c"}.issuperset(terms)):
        yield f"pos_att_type={'|'.join(terms)} of DeBERTa v1, whose scale counts entries (c2p and p2c, each once)"


def _other_structure(found: str) -> ConfigError:
    from transformers import __version__

    return ConfigError(f"transformers {__version__} has another DeBERTa than the one this was written for: {found}")
