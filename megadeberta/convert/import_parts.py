"""``convert import`` of a generator and a discriminator -> one folder that replaced token detection goes on from.

GDES: the discriminator's table is E_G + E_delta, where E_G is the generator's (DeBERTaV3 paper, section 3.3). A run
keeps E_G and E_delta; files keep E_G and the sum, or E_G and E_delta (Microsoft's ``_weight``), or all three.
"""

from pathlib import Path
from typing import Literal

import torch
from pydantic import ValidationError
from torch import Tensor

from megadeberta.config.first_problem import first_problem
from megadeberta.config.model import ModelConfig
from megadeberta.config.objective import DISCRIMINATOR, GENERATOR, ObjectiveConfig, RtdConfig, part_of
from megadeberta.config.set_files import TOKENIZER_FILE
from megadeberta.convert.formats.names import difference_names
from megadeberta.convert.formats.places import folder_of
from megadeberta.convert.formats.read_folder import ImportedModel, ReportLine, read_discriminator, read_hf_folder
from megadeberta.convert.import_folder import draw_initial_values, write_import
from megadeberta.convert.new_vocabulary import onto_vocabulary
from megadeberta.data.tokenizer import find_tokenizer
from megadeberta.errors import CheckpointError
from megadeberta.layers.catalogue import rtd_layers
from megadeberta.layers.embeddings import POSITION_TABLE, WORD_TABLE
from megadeberta.layers.shapes import parameter_shapes
from megadeberta.weights.vocabulary import check_tokenizer_fits

Sharing = Literal["gdes", "es", "nes"]
Weights = dict[str, Tensor]
TABLES = (WORD_TABLE, POSITION_TABLE)
_STALE = 0.05
"""Microsoft's sum is that of the last forward pass, one optimizer step behind its terms: a step moves a table by less
than this fraction of its mean absolute value, while the table of another model differs by all of it."""
_NO_WHOLE_TABLE = (
    "{source}: holds {microsoft}, the difference from a generator's table, and no whole table; give the generator it "
    "was trained with (--generator)"
)
_OF_ANOTHER_GENERATOR = "relative to a generator that is not given; the whole table was taken"
_MAY_DIFFER = {"num_hidden_layers", "enhanced_mask_decoder", "initializer_range"}
_MAY_DIFFER |= {"hidden_dropout_prob", "attention_probs_dropout_prob"}
"""What generator and discriminator need not have in common; the discriminator's values are the run's."""


def import_parts(
    discriminator: Path,
    out: Path,
    *,
    generator: Path | None,
    sharing: Sharing = "gdes",
    allow_new: bool = False,
    mask_decoder: bool | None = None,
    tokenizer: Path | None = None,
    seed: int = 1234,
    overwrite: bool = False,
) -> list[ReportLine]:
    """Convert two models, of two folders or of one that holds both, into ``out``: as :func:`import_folder`, but
    ``generator.*`` and ``discriminator.*``, with ``objective.json`` for how they share tables.

    Args:
        generator: its folder or file. None: a new one of half the discriminator's depth around the discriminator's word
            table, all else drawn from the seed.
        sharing: how the run will share the tables.
        allow_new: draw a head or the decoder's absolute positions by name where the files have none.
        tokenizer: another vocabulary for the weights, see :func:`megadeberta.convert.new_vocabulary.onto_vocabulary`.
        mask_decoder: of the generator. None: as in :func:`read_hf_folder`, and yes for a new one that can have it.

    Returns:
        One line for every tensor of the files and of the model.

    Raises:
        CheckpointError: a folder is not sound, or the two are not parts of one model.
    """
    discriminator_model = read_discriminator(discriminator)
    generator_model = None if generator is None else read_hf_folder(generator, mask_decoder=mask_decoder)
    source = str(discriminator) if generator is None else f"{discriminator} and {generator}"
    config, rtd = _joint_config(
        discriminator_model, generator_model, source, sharing=sharing, mask_decoder=mask_decoder
    )
    objective = ObjectiveConfig(name="rtd", rtd=rtd)
    spm = _common_vocabulary([folder_of(place) for place in (discriminator, generator) if place is not None])
    if tokenizer is None:
        check_tokenizer_fits(spm, config)
    if generator_model is not None:
        _check_two(discriminator_model, generator_model, source)

    weights = {f"{DISCRIMINATOR}.{name}": t for name, t in discriminator_model.weights.items() if name not in TABLES}
    lines = _lines_of(discriminator_model, DISCRIMINATOR)
    if generator_model is not None:
        weights |= {f"{GENERATOR}.{name}": tensor for name, tensor in generator_model.weights.items()}
        lines += _lines_of(generator_model, GENERATOR)
    for table in TABLES:
        if table in discriminator_model.weights or difference_names(table)[0] in discriminator_model.differences:
            lines += _add_table(table, weights, discriminator_model, sharing=sharing, source=source)
    missing = sorted(parameter_shapes(config, objective).keys() - weights.keys())
    # Without a generator's folder its initial values are what was asked for.
    not_implied = [name for name in missing if generator is not None or part_of(name) == DISCRIMINATOR]
    if not_implied and not allow_new:
        raise CheckpointError(
            f"{source}: have no {', '.join(not_implied)}; add --allow-new to start them from random values"
        )
    weights |= draw_initial_values(rtd_layers(config, rtd), missing, seed=seed, std=config.initializer_range)
    reason = f"not in the files: drawn from seed {seed} and its name, untrained"
    lines += [ReportLine("created", name, None, reason) for name in missing]
    if tokenizer is not None:
        weights, config, rows = onto_vocabulary(weights, config, objective, old=spm, new=tokenizer, seed=seed)
        lines, spm = [line.with_note(rows) for line in lines], tokenizer
    write_import(out, config, weights, lines, spm=spm, objective=objective, overwrite=overwrite)
    return lines


def _check_two(discriminator: ImportedModel, generator: ImportedModel, source: str) -> None:
    """Refuse one model under two names: a generator that is a copy of the discriminator fools nobody."""
    mine, other = ({n: t for n, t in m.weights.items() if n.startswith("layer.")} for m in (discriminator, generator))
    common = mine.keys() & other.keys()
    if common and all(torch.equal(mine[name], other[name]) for name in common):
        raise CheckpointError(
            f"{source}: the generator's layers are those of the discriminator, so it is no generator of it; give the "
            "generator, or start one with --new-generator"
        )


def _joint_config(
    discriminator: ImportedModel,
    generator: ImportedModel | None,
    source: str,
    *,
    sharing: Sharing,
    mask_decoder: bool | None,
) -> tuple[ModelConfig, RtdConfig]:
    """The run's model section, which is the discriminator's but for the generator's mask decoder; and how they share.

    Raises:
        CheckpointError: the two differ in more than depth.
    """
    ours = discriminator.config.model_dump()
    if generator is None:
        decoder = _can_decode(discriminator.config) if mask_decoder is None else mask_decoder
        rtd = RtdConfig(embedding_sharing=sharing)
    else:
        theirs = generator.config.model_dump()
        if different := [name for name in ours if name not in _MAY_DIFFER and ours[name] != theirs[name]]:
            name = different[0]
            raise CheckpointError(
                f"{source}: are not discriminator and generator of one model: {name} is {ours[name]} and "
                f"{theirs[name]}; only their depth may differ"
            )
        decoder = generator.config.enhanced_mask_decoder
        rtd = RtdConfig(embedding_sharing=sharing, generator_layers=generator.config.num_hidden_layers)
    try:
        config = ModelConfig.model_validate(ours | {"enhanced_mask_decoder": decoder})
        rtd.generator(config)
    except ValidationError as error:
        raise CheckpointError(
            f"{source}: no generator of this shape: {first_problem(error, show_value=True)}; add --no-mask-decoder"
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


def _add_table(
    table: str, weights: Weights, discriminator: ImportedModel, *, sharing: Sharing, source: str
) -> list[ReportLine]:
    """Put one table of the discriminator into ``weights`` in the form that the sharing stores."""
    base_name, (delta, microsoft) = f"{GENERATOR}.{table}", difference_names(table)
    whole, difference = discriminator.weights.get(table), discriminator.differences.get(delta)
    lines = []
    if base_name not in weights:
        if whole is None:
            raise CheckpointError(_NO_WHOLE_TABLE.format(source=source, microsoft=microsoft))
        if difference is not None:
            lines.append(ReportLine("dropped", None, f"{DISCRIMINATOR}: {microsoft}", _OF_ANOTHER_GENERATOR))
        weights[base_name], difference = whole.clone(), torch.zeros_like(whole)
        lines.append(ReportLine("taken", base_name, f"{DISCRIMINATOR}: {table}", "the new generator starts from it"))
        origin, reason = table, "the same table"
    elif difference is not None:
        if whole is not None:
            _check_sum(weights[base_name], difference, whole, source)
            why = f"a sum that may be a step old: computed afresh from the generator's table and {microsoft}"
            lines.append(ReportLine("dropped", None, f"{DISCRIMINATOR}: {table}", why))
        whole = weights[base_name] + difference
        origin, reason = microsoft, "the difference as the file has it"
    else:
        assert whole is not None  # the file has one of the two, see the caller
        difference = whole - weights[base_name]
        fraction = difference.abs().mean() / weights[base_name].abs().mean()
        origin, reason = table, f"less the generator's table; the difference is {fraction:.3f} of it on average"
    if sharing == "gdes":
        stored = f"{DISCRIMINATOR}.{delta}"
        weights[stored] = difference
    elif sharing == "nes":
        stored, reason = f"{DISCRIMINATOR}.{table}", "the whole table"
        weights[stored] = whole
    elif difference.any():
        raise CheckpointError(f"{source}: have two different word tables, --sharing es keeps one; use gdes or nes")
    else:
        stored, reason = base_name, "one table for both"
    return [*lines, ReportLine("taken", stored, f"{DISCRIMINATOR}: {origin}", reason)]


def _check_sum(base: Tensor, difference: Tensor, whole: Tensor, source: str) -> None:
    """Whether the discriminator's ``weight`` is about E_G + E_delta, or E_G (both have been written)."""
    size = whole.abs().mean()
    off = min((whole - table).abs().mean() / size for table in (base + difference, base))
    if not off <= _STALE:
        raise CheckpointError(
            f"{source}: the discriminator's word table is not the generator's plus its difference (off by {off:.2f} of "
            "its size on average); the two are of different runs or steps, give those of one"
        )


def _common_vocabulary(folders: list[Path]) -> Path:
    """The tokenizer beside the weights; a path that does not exist if no folder has one."""
    found = [path for folder in folders if (path := find_tokenizer(folder)) is not None]
    if any(path.read_bytes() != found[0].read_bytes() for path in found[1:]):
        raise CheckpointError(f"{found[0]} and {found[1]} differ: generator and discriminator need one vocabulary")
    return found[0] if found else folders[0] / TOKENIZER_FILE
