"""The weights that ``megadeberta extend`` writes."""

from pathlib import Path

from megadeberta.config.set_files import TOKENIZER_FILE
from megadeberta.convert.formats.read_folder import ReportLine
from megadeberta.convert.import_folder import write_import
from megadeberta.stages.longer import lengthen
from megadeberta.stages.longer_model import longer_model
from megadeberta.stages.parent import Parent
from megadeberta.weights.source import load_weights


def write_extension_weights(parent: Parent, start: Path, *, trained: int, length: int) -> None:
    """Write the weights of ``parent`` for sequences of ``length`` to the folder ``start``, as `convert import` does.

    Args:
        trained: tokens per sequence that they were trained on.

    Raises:
        CheckpointError: the weights do not fit their recipe.
    """
    source = load_weights(parent.folder)
    weights = dict(source.weights)
    notes = lengthen(weights, source.config, source.objective, trained=trained, length=length)
    lines = [ReportLine("taken", name, name, f"from {parent.folder}").with_note(notes) for name in weights]

    write_import(
        start,
        longer_model(source.config, length),
        weights,
        lines,
        spm=source.tokenizer or parent.folder / TOKENIZER_FILE,
        objective=source.objective,
        overwrite=True,
    )
