"""``megadeberta convert`` and ``megadeberta fill-mask``. Torch and transformers are imported after the arguments."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from megadeberta.config.plugins import PluginOption
from megadeberta.config.terminal import say
from megadeberta.config.waiting import Waiting

if TYPE_CHECKING:
    from megadeberta.convert.formats.read_folder import ReportLine
    from megadeberta.convert.publish import Destination

app = typer.Typer(help="Convert checkpoints to Hugging Face folders and back.", no_args_is_help=True)

Checkpoint = Annotated[
    Path,
    typer.Argument(
        help="The training.output_dir of a run (its newest intact checkpoint), one step-N folder, or an imported "
        "folder",
        show_default=False,
    ),
]
_FEW = 3
"""At most this many tensors are named one by one after an import."""
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what this command wrote to OUT before")]


@app.command("export")
def export_command(
    checkpoint: Checkpoint,
    out: Annotated[Path, typer.Argument(help="New folder for transformers", show_default=False)],
    model: Annotated[
        Literal["mlm", "backbone", "discriminator", "generator"] | None,
        typer.Option(
            help="What to take: mlm, with the prediction head; backbone, the encoder alone; discriminator or "
            "generator: that part of a run of replaced token detection; default: the discriminator if there is one, "
            "else mlm",
            show_default=False,
        ),
    ] = None,
    file_format: Annotated[
        Literal["hf", "microsoft"], typer.Option("--format", help="For transformers, or for microsoft/DeBERTa")
    ] = "hf",
    licence: Annotated[
        str | None, typer.Option("--license", help="For the model card, as the hub spells it: mit, apache-2.0")
    ] = None,
    language: Annotated[
        list[str] | None, typer.Option(help="For the model card, a code such as en; repeatable")
    ] = None,
    onnx: Annotated[
        bool, typer.Option("--onnx", help="Write model.onnx too, compared with torch (needs the extra onnx)")
    ] = False,
    all_steps: Annotated[
        bool,
        typer.Option("--all-steps", help="Every checkpoint that the run kept, as OUT/step-N; revisions on the hub"),
    ] = False,
    push: Annotated[
        str | None, typer.Option(help="OWNER/MODEL of the hub to upload to; made if it is not there")
    ] = None,
    private: Annotated[bool, typer.Option("--private", help="With --push: a new repository is private")] = False,
    overwrite: Overwrite = False,
    plugin: PluginOption = None,
) -> None:
    """Write a checkpoint as a folder that others load: weights, config, tokenizer, model card.

    The folder is loaded through transformers and compared with our own model before it appears under OUT.

    Example: megadeberta convert export runs/quickstart exported
    """
    from megadeberta.convert.card_facts import CardFacts
    from megadeberta.convert.export_checks import check_export, kept_steps
    from megadeberta.convert.formats.family import FileFormat, ModelKind
    from megadeberta.convert.publish import Destination
    from megadeberta.errors import ConfigError

    if private and push is None:
        raise ConfigError("--private is of a repository that --push makes; give --push OWNER/MODEL, or leave it out")
    to = None if push is None else Destination(push, private)
    facts = CardFacts(licence, tuple(language or ()))
    options: dict[str, Any] = {"kind": ModelKind(model) if model else None, "file_format": FileFormat(file_format)}
    options |= {"onnx": onnx, "overwrite": overwrite}
    folders = kept_steps(checkpoint, out) if all_steps else {checkpoint: out}
    for source, target in folders.items():
        check_export(source, target, **options)
    with Waiting("loading torch and transformers"):
        from megadeberta.convert.export import export_checkpoint
    with Waiting(f"exporting {checkpoint}, comparing with transformers"):
        found = {
            target: export_checkpoint(source, target, facts=facts, **options) for source, target in folders.items()
        }
    for folder, findings in found.items():
        _print_findings(f"{folder} is written and checked", [(finding.what, finding.detail) for finding in findings])
    _publish(list(found), to)


def _publish(folders: list[Path], to: "Destination | None") -> None:
    """Upload the exports, or say how."""
    from megadeberta.convert.publish import push, revisions, upload_commands

    named = revisions(folders)
    if to is None:
        typer.echo("to publish:")
        for command in upload_commands(named):
            typer.echo(f"  {command}")
    else:
        with Waiting(f"uploading to {to.repo}"):
            address = push(named, to)
        say(f"{address} is up to date: {', '.join(named)}")


@app.command("check")
def check_command(folder: Annotated[Path, typer.Argument(help="An export", show_default=False)]) -> None:
    """Load an export through transformers again and compare it with our own model; exit code 2 if anything differs.

    Example: megadeberta convert check exported
    """
    from megadeberta.convert.formats.families import check_family
    from megadeberta.errors import CheckpointError
    from megadeberta.weights.place import weights_path

    if folder.is_file():
        raise CheckpointError(f"{folder}: is a file; give the folder of an export")
    check_family(folder)
    weights_path(folder)
    with Waiting("loading torch and transformers"):
        from megadeberta.convert.reload_check import check_export
    with Waiting(f"comparing {folder} with our model"):
        findings = check_export(folder)
    _print_findings(f"{folder} is sound", [(finding.what, finding.detail) for finding in findings])


@app.command("import")
def import_command(
    model: Annotated[
        Path,
        typer.Argument(
            help="A folder or file of transformers or microsoft/DeBERTa, or OWNER/MODEL of the hub", show_default=False
        ),
    ],
    out: Annotated[Path, typer.Argument(help="New folder, for training.init_from", show_default=False)],
    generator: Annotated[
        Path | None,
        typer.Option(
            help="MODEL is a discriminator, this is its generator; continues replaced token detection; default: the "
            "generator in MODEL, as in published v3 folders, if there is one",
            show_default=False,
        ),
    ] = None,
    new_generator: Annotated[
        bool,
        typer.Option("--new-generator", help="MODEL is a discriminator; initialise a generator from its word table"),
    ] = False,
    no_generator: Annotated[
        bool, typer.Option("--no-generator", help="Leave a generator in MODEL aside: one model, that predicts tokens")
    ] = False,
    sharing: Annotated[
        Literal["gdes", "es", "nes"], typer.Option(help="How generator and discriminator will share tables")
    ] = "gdes",
    allow_new: Annotated[
        bool, typer.Option("--allow-new", help="Initialise a head or absolute positions that the file lacks")
    ] = False,
    mask_decoder: Annotated[
        bool | None,
        typer.Option(
            "--mask-decoder/--no-mask-decoder",
            help="Whether the model has the enhanced mask decoder; default: yes if the file has absolute positions",
            show_default=False,
        ),
    ] = None,
    tokenizer: Annotated[
        Path | None,
        typer.Option(
            help="Another vocabulary, file or folder: rows of equal pieces are taken over, the others drawn",
            show_default=False,
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of newly initialised weights")] = 1234,
    overwrite: Overwrite = False,
    plugin: PluginOption = None,
) -> None:
    """Turn a model of Hugging Face or Microsoft into weights that `training.init_from` starts from.

    Every tensor of the file and of the model is accounted for in OUT/import_report.json. With a generator,
    OUT/objective.json is the objective section that the weights are for.

    Example: megadeberta convert import exported start-here
    """
    from megadeberta.convert.formats.families import check_family, lacks_token_head
    from megadeberta.convert.formats.places import find_generator
    from megadeberta.convert.published_folder import check_free
    from megadeberta.data.tokenizer import load_tokenizer
    from megadeberta.errors import CheckpointError, ConfigError
    from megadeberta.weights.hub import MODEL_JSON, check_foreign, find_model
    from megadeberta.weights.place import weights_path
    from megadeberta.weights.safetensors_file import check_finite_at

    if (generator is not None) + new_generator + no_generator > 1:
        raise ConfigError("--generator, --new-generator and --no-generator exclude each other: choose one")
    place = find_model(model)
    given = None if generator is None else find_model(generator)
    check_foreign(place)
    check_family(place)
    check_free(out, overwrite=overwrite, marker=MODEL_JSON)
    weights_path(place)
    found = None if new_generator or no_generator else find_generator(place, given)
    if tokenizer is not None:
        load_tokenizer(tokenizer)

    # Torch comes after the names and numbers: a mistake in one is said at once.
    with Waiting(f"looking into {place}"):
        for each in (place, found):
            if each is not None:
                check_finite_at(weights_path(each))
    predicts = found if found is not None else None if new_generator else place
    if predicts is not None and not allow_new and lacks_token_head(predicts):
        raise CheckpointError(
            f"{predicts}: has no head that predicts tokens; add --allow-new to start one from random values, or, of a "
            "discriminator, give its --generator or --new-generator"
        )
    with Waiting("loading torch"):
        from megadeberta.convert.import_folder import REPORT, import_folder
        from megadeberta.convert.import_parts import import_parts

    more: dict[str, Any] = {"allow_new": allow_new, "mask_decoder": mask_decoder, "seed": seed, "overwrite": overwrite}
    more["tokenizer"] = tokenizer
    with Waiting(f"reading {place}, writing {out}"):
        if new_generator or found is not None:
            lines = import_parts(place, out, generator=found, sharing=sharing, **more)
        else:
            lines = import_folder(place, out, **more)
    _print_table(f"{out} is written", ("what", "tensors", "which"), _import_summary(lines, report=out / REPORT))


def _import_summary(lines: Sequence["ReportLine"], *, report: Path) -> list[tuple[str, str, str]]:
    """How many tensors were taken, drawn and dropped; the few are named, the many are in the report."""
    rows = []
    for action, shown in (("taken", "taken"), ("created", "DRAWN"), ("dropped", "dropped")):
        found = [line for line in lines if line.action == action]
        if not found:
            continue
        reasons = list(dict.fromkeys(line.reason for line in found))
        names = [line.ours or line.theirs or "" for line in found]
        if action == "taken":
            which = "from the file"
        elif len(found) <= _FEW:
            which = "; ".join(f"{name}: {line.reason}" for name, line in zip(names, found, strict=True))
        else:
            which = f"{names[0]} to {names[-1]}, {reasons[0] if len(reasons) == 1 else 'for several reasons'}"
        rows.append((shown, str(len(found)), which))
    return [*rows, ("report", "", f"every tensor, and what became of it: {report}")]


def fill_mask(
    path: Annotated[
        Path, typer.Argument(help="Run, checkpoint, imported folder or Hugging Face folder", show_default=False)
    ],
    text: Annotated[
        str, typer.Argument(help='A text with [MASK], e.g. "The [MASK] of the United States."', show_default=False)
    ],
    top_k: Annotated[int, typer.Option(min=1, help="Tokens to show for each mask")] = 5,
    plugin: PluginOption = None,
) -> None:
    """Show the most likely tokens for every [MASK] in a text, predicted through the mask decoder.

    Example: megadeberta fill-mask runs/quickstart "The President of the [MASK] States."
    """
    from megadeberta.convert.find import find_any_model
    from megadeberta.convert.mask_text import check_has_mask, check_request

    check_has_mask(text)
    place = find_any_model(path)
    check_request(place, text, top_k)
    with Waiting("loading torch and transformers"):
        from megadeberta.convert.fill_mask import predict_masks
    with Waiting(f"reading {path}"):
        masks = predict_masks(place, text, top_k=top_k)
    table = Table("mask", "piece", "probability", "text")
    for number, guesses in enumerate(masks, start=1):
        for rank, guess in enumerate(guesses):
            first, last = rank == 0, rank == len(guesses) - 1
            filled = _fill(text, number, guess.text)
            row = (str(number) if first else "", guess.piece, f"{guess.probability:.1%}", filled)
            table.add_row(*map(Text, row), end_section=last)
    Console().print(table)


def _fill(text: str, number: int, piece: str) -> str:
    """The text with its mask ``number`` (from 1) replaced; the others stay."""
    segments = text.split("[MASK]")
    before, after = "[MASK]".join(segments[:number]), "[MASK]".join(segments[number:])
    return ((before.rstrip() if piece.startswith(" ") else before) + piece + after).strip()


def _print_findings(title: str, rows: list[tuple[str, str]]) -> None:
    _print_table(title, ("compared", "result"), rows)


def _print_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    say(title)  # above the table, whose title would be cut where the terminal is narrow
    table = Table(*columns)
    for row in rows:
        table.add_row(*map(Text, row))
    Console().print(table)
