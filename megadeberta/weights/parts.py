"""Generator and discriminator as models of their own, from the weights of a run that trained both."""

from collections.abc import Mapping

from torch import Tensor

from megadeberta.config.objective import DISCRIMINATOR, GENERATOR, part_of

_DIFFERENCE = ".delta"


def split_parts(weights: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Generator's and discriminator's tensors under the names that each has as the only model.

    A table shared with the generator is written out whole: a copy of it, plus the discriminator's difference as it is
    now where the sharing is disentangled.

    Args:
        weights: by the names of ``rtd_layers``; a shared table once, under the generator's name.
    """
    generator = _of_part(weights, GENERATOR)
    discriminator = _of_part(weights, DISCRIMINATOR)
    for name, difference in list(discriminator.items()):
        if name.endswith(_DIFFERENCE):
            table = f"{name.removesuffix(_DIFFERENCE)}.weight"
            discriminator[table] = generator[table] + difference
            del discriminator[name]
    for name in ("embeddings.word_embeddings.weight", "embeddings.position_embeddings.weight"):
        if name in generator and name not in discriminator:  # one table for both
            discriminator[name] = generator[name].clone()
    return generator, discriminator


def _of_part(weights: Mapping[str, Tensor], part: str) -> dict[str, Tensor]:
    return {name.removeprefix(f"{part}."): tensor for name, tensor in weights.items() if part_of(name) == part}
