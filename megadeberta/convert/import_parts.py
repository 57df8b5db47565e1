"""``convert import`` of a generator and a discriminator -> one folder that replaced token detection goes on from.

GDES: the discriminator's table is E_G + E_delta, where E_G is the generator's (DeBERTaV3 paper, section 3.3). A run
keeps E_G and E_delta; files keep E_G and the sum, or E_G and E_delta (Microsoft's ``_weight``), or all three.
"""

import logging
from pathlib import Path
from typing import Literal

import torch
from pydantic import ValidationError
from torch import Tensor

from megadeberta.config.data import TOKENIZER_FILE
from megadeberta.config.first_problem import first_problem
from megadeberta.config.model import ModelConfig
from megadeberta.config.objective import DISCRIMINATOR, GENERATOR, ObjectiveConfig, RtdConfig, part_of
from megadeberta.convert.formats.names import INPUT_POSITION_TABLE, WORD_TABLE, difference_names
from megadeberta.convert.formats.read_folder import ImportedModel, ReportLine, read_discriminator, read_hf_folder
from megadeberta.convert.import_folder import write_import
from megadeberta.errors import CheckpointError
from megadeberta.layers.catalogue import rtd_layers
from megadeberta.layers.shapes import parameter_shapes
from megadeberta.model.initialize import initialize
from megadeberta.model.whole import WholeModel
from megadeberta.weights.vocabulary import check_tokenizer_fits

log = logging.getLogger(__name__)

Sharing = Literal["gdes", "es", "nes"]
Weights = dict[str, Tensor]
TABLES = (WORD_TABLE, INPUT_POSITION_TABLE)
_STALE = 0.05
"""Microsoft's sum is that of the last forward pass, one optimizer step behind its terms: a step moves a table by less
than this share of its mean absolute value, while another model's table differs by all of it."""
_FREE = {"num_hidden_layers", "enhanced_mask_decoder", "initializer_range"}
_FREE |= {"hidden_dropout_prob", "attention_probs_dropout_prob"}
"""What generator and discriminator need not have in common; the discriminator's values are the run's."""


def import_parts(
    discriminator: Path,
    out: Path,
    *,
    generator: Path | None,
    sharing: Sharing = "gdes",
    allow_new: bool = False,
    mask_decoder: bool | None = None,
    seed: int = 1234,
    overwrite: bool = False,
) -> list[ReportLine]:
    """Convert two folders into ``out``: as :func:`import_folder`, but ``generator.*`` and ``discriminator.*``, with
    ``objective.json`` for how they share tables.

    Args:
        generator: None: a new one of half the discriminator's depth around the discriminator's word table, all else
            drawn from the seed.
        sharing: how the run will share the tables.
        allow_new: draw a head or the decoder's absolute positions by name where the files have none.
        mask_decoder: of the generator. None: as in :func:`read_hf_folder`, and yes for a new one that can have it.

    Returns:
        One line for every tensor of the files and of the model.

    Raises:
        CheckpointError: a folder is not sound, or the two are not parts of one model.
    """
    judge = read_discriminator(discriminator)
    maker = None if generator is None else read_hf_folder(generator, mask_decoder=mask_decoder)
    where = str(discriminator) if generator is None else f"{discriminator} and {generator}"
    config, rtd = _joint_shape(judge, maker, where, sharing=sharing, mask_decoder=mask_decoder)
    objective = ObjectiveConfig(name="rtd", rtd=rtd)
    spm = _common_vocabulary([folder for folder in (discriminator, generator) if folder is not None])
    check_tokenizer_fits(spm, config)

    weights = {f"{DISCRIMINATOR}.{name}": t for name, t in judge.weights.items() if name not in TABLES}
    lines = _lines_of(judge, DISCRIMINATOR)
    if maker is not None:
        weights |= {f"{GENERATOR}.{name}": tensor for name, tensor in maker.weights.items()}
        lines += _lines_of(maker, GENERATOR)
    for table in TABLES:
        if table in judge.weights or difference_names(table)[0] in judge.differences:
            lines += _share(table, weights, judge, sharing=sharing, where=where)
    missing = sorted(parameter_shapes(config, objective).keys() - weights.keys())
    needs_consent = [name for name in missing if maker is not None or part_of(name) == DISCRIMINATOR]
    if needs_consent and not allow_new:
        raise CheckpointError(
            f"{where}: have no {', '.join(needs_consent)}; add --allow-new to start them from random values"
        )
    weights |= _draw(config, rtd, missing, seed=seed)
    reason = f"not in the files: drawn from seed {seed} and its name, untrained"
    lines += [ReportLine("created", name, None, reason) for name in missing]
    write_import(out, config, weights, lines, spm=spm, objective=objective, overwrite=overwrite)
    return lines


def _joint_shape(
    judge: ImportedModel, maker: ImportedModel | None, where: str, *, sharing: Sharing, mask_decoder: bool | None
) -> tuple[ModelConfig, RtdConfig]:
    """The run's model section, which is the discriminator's but for the generator's mask decoder; and how they share.

    Raises:
        CheckpointError: the two differ in more than depth.
    """
    shape = judge.config.model_dump()
    if maker is None:
        decoder = _can_decode(judge.config) if mask_decoder is None else mask_decoder
        rtd = RtdConfig(embedding_sharing=sharing)
    else:
        theirs = maker.config.model_dump()
        if different := [name for name in shape if name not in _FREE and shape[name] != theirs[name]]:
            name = different[0]
            raise CheckpointError(
                f"{where}: are not discriminator and generator of one model: {name} is {shape[name]} and "
                f"{theirs[name]}; only their depth may differ"
            )
        decoder = maker.config.enhanced_mask_decoder
        rtd = RtdConfig(embedding_sharing=sharing, generator_layers=maker.config.num_hidden_layers)
    try:
        config = ModelConfig.model_validate(shape | {"enhanced_mask_decoder": decoder})
        rtd.generator(config)
    except ValidationError as error:
        raise CheckpointError(
            f"{where}: no generator of this shape: {first_problem(error, show_value=True)}; add --no-mask-decoder"
        ) from None
    return config, rtd


def _can_decode(config: ModelConfig) -> bool:
    """Whether a generator of half this depth can have a mask decoder."""
    same_width = config.embedding_width == config.hidden_size
    return same_width and not config.position_biased_input and config.num_hidden_layers >= 4


def _lines_of(model: ImportedModel, part: str) -> list[ReportLine]:
    """The model's report with the part ahead of every name; shared tables have lines of their own."""
    lines = []
    for line in model.lines:
        if part == DISCRIMINATOR and line.ours in TABLES:
            continue
        ours = line.ours and f"{part}.{line.ours}"
        lines.append(ReportLine(line.action, ours, f"{part}: {line.theirs}", line.reason))
    return lines


def _share(table: str, weights: Weights, judge: ImportedModel, *, sharing: Sharing, where: str) -> list[ReportLine]:
    """Put one table of the discriminator into ``weights`` as the sharing keeps it."""
    base_name, whole_name = f"{GENERATOR}.{table}", f"{DISCRIMINATOR}.{table}"
    delta, microsoft = difference_names(table)
    whole, difference = judge.weights.get(table), judge.differences.get(delta)
    lines = []
    if base_name not in weights:
        if whole is None:
            raise CheckpointError(
                f"{where}: holds {microsoft}, the difference from a generator's table, and no whole table; give the "
                "generator it was trained with (--generator)"
            )
        if difference is not None:
            why = "relative to a generator that is not given; the whole table was taken"
            lines.append(ReportLine("dropped", None, f"{DISCRIMINATOR}: {microsoft}", why))
        weights[base_name], difference = whole.clone(), torch.zeros_like(whole)
        lines.append(ReportLine("taken", base_name, f"{DISCRIMINATOR}: {table}", "the new generator starts from it"))
        origin, reason = table, "the same table"
    elif difference is not None:
        if whole is not None:
            _check_sum(weights[base_name], difference, whole, where)
            why = f"a sum that may be a step old: computed afresh from the generator's table and {microsoft}"
            lines.append(ReportLine("dropped", None, f"{DISCRIMINATOR}: {table}", why))
        whole = weights[base_name] + difference
        origin, reason = microsoft, "the difference as the file has it"
    else:
        assert whole is not None  # the file has one of the two, see the caller
        difference = whole - weights[base_name]
        share = difference.abs().mean() / weights[base_name].abs().mean()
        origin, reason = table, f"less the generator's table; the difference is {share:.3f} of it on average"
    if sharing == "gdes":
        kept = f"{DISCRIMINATOR}.{delta}"
        weights[kept] = difference
    elif sharing == "nes":
        kept, reason = whole_name, "the whole table"
        weights[kept] = whole
    elif difference.any():
        raise CheckpointError(f"{where}: have two different word tables, --sharing es keeps one; use gdes or nes")
    else:
        kept, reason = base_name, "one table for both"
    return [*lines, ReportLine("taken", kept, f"{DISCRIMINATOR}: {origin}", reason)]


def _check_sum(base: Tensor, difference: Tensor, whole: Tensor, where: str) -> None:
    """Whether the discriminator's ``weight`` is about E_G + E_delta, or E_G (both have been written)."""
    size = whole.abs().mean()
    off = min((whole - table).abs().mean() / size for table in (base + difference, base))
    if not off <= _STALE:
        raise CheckpointError(
            f"{where}: the discriminator's word table is not the generator's plus its difference (off by {off:.2f} of "
            "its size on average); the two are of different runs or steps, give those of one"
        )


def _draw(config: ModelConfig, rtd: RtdConfig, names: list[str], *, seed: int) -> Weights:
    """Initial values, exactly those that a new run with this seed would start from."""
    if not names:
        return {}
    log.warning("NOT FROM A FILE but freshly drawn, untrained: %s", ", ".join(names))
    model = WholeModel(rtd_layers(config, rtd))
    initialize(model, seed=seed, std=config.initializer_range)
    return {name: model.get_parameter(name).detach() for name in names}


def _common_vocabulary(folders: list[Path]) -> Path:
    """The tokenizer beside the weights; a path that does not exist if no folder has one."""
    found = [folder / TOKENIZER_FILE for folder in folders if (folder / TOKENIZER_FILE).is_file()]
    if any(path.read_bytes() != found[0].read_bytes() for path in found[1:]):
        raise CheckpointError(f"{found[0]} and {found[1]} differ: generator and discriminator need one vocabulary")
    return found[0] if found else folders[0] / TOKENIZER_FILE
