"""A model by its name: a folder or file of this machine, or a repository of the Hugging Face hub. Never torch."""

import re
from collections.abc import Collection
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from megadeberta.checkpoint.folder import CHECKPOINTS_FOLDER, list_checkpoints
from megadeberta.checkpoint.manifest import MANIFEST_NAME
from megadeberta.checkpoint.newest import manifest_at
from megadeberta.config.waiting import Waiting
from megadeberta.errors import CheckpointError
from megadeberta.storage import pointer_note
from megadeberta.weights.safetensors_file import check_finite_at

_NAME = re.compile(r"(?P<repo>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(@(?P<revision>[\w./-]+))?")
"""OWNER/MODEL, with a branch, tag or commit behind an @."""
_ADDRESS = re.compile(r"(?:huggingface\.co/|hf:/+)(?:models/)?(?P<repo>[\w.-]+/[\w.-]+)")
"""As copied from a browser; a path has lost one of two slashes."""
MODEL_JSON = "model.json"
"""In a folder that ``convert import`` wrote: the dump of its ModelConfig."""
_WEIGHT_ENDS = (".safetensors", ".bin", ".pt", ".pth", ".index.json")
_CONFIGS = ("config.json", "generator_config.json", "model_config.json", "README.md")
_TOKENIZERS = ("spm.model", "*.spm", "tokenizer*.json", "*tokens*.json", "vocab.*", "merges.txt")
_WEIGHTS = (
    ("model.safetensors",),
    ("model.safetensors.index.json", "model-*.safetensors"),
    ("pytorch_model.bin",),
    ("pytorch_model.bin.index.json", "pytorch_model-*.bin"),
)
"""The first of which a repository has the first file is fetched: the others are the same tensors again."""
_GENERATORS = (("model.generator.safetensors",), ("pytorch_model.generator.bin",))
_WEIGHT_NAMES = {choice[0] for choice in (*_WEIGHTS, *_GENERATORS)}
_SECONDS = 10.0
_DOWNLOAD_HINT = "`hf download {repo} --local-dir {folder}` fetches it on a machine that can; give that folder then"


def find_model(place: Path) -> Path:
    """The folder or file of this machine that ``place`` names; a model of the hub is fetched to its cache first.

    Args:
        place: a path, or OWNER/MODEL of the hub, perhaps with @REVISION. What exists here is never asked for there.

    Raises:
        CheckpointError: there is no such path, and it names no model of the hub, or the hub cannot be reached; or it is
            a file that can hold no weights.
    """
    named = _named(place)
    if named is None:
        return place
    with Waiting(f"fetching {place} from the hub"):
        return _fetch(named["repo"], named["revision"])


def _named(place: Path) -> re.Match[str] | None:
    """The name of a model of the hub; None where ``place`` is a folder, or a file that can hold weights."""
    if place.exists():
        check_weights_file(place)
        return None
    named = _NAME.fullmatch(str(place))
    address = _ADDRESS.search(str(place))
    if address is not None:
        raise CheckpointError(f"{place}: no such folder or file; write the model of the hub as {address['repo']}")
    if named is None:
        raise CheckpointError(f"{place}: no such folder or file; give one, or a model of the hub as OWNER/MODEL")
    return named


def check_weights_file(place: Path) -> None:
    """Refuse a file that is none of weights, by its name; a folder is none of them.

    Raises:
        CheckpointError: another file.
    """
    if note := pointer_note(place):
        raise CheckpointError(note)
    if place.is_file() and not place.name.endswith(_WEIGHT_ENDS):
        raise CheckpointError(f"{place}: is no file of weights; give a folder, or its .safetensors or .bin")


def check_start(place: Path) -> None:
    """Refuse what `training.init_from` cannot start from, as far as torch is not needed; the hub is not asked.

    Raises:
        CheckpointError: no such place, a run of ours, a folder without weights, or numbers that are not finite.
    """
    if _named(place) is not None:
        return
    if place.is_file():
        check_finite_at(place)
        return
    if list_checkpoints(place / CHECKPOINTS_FOLDER) or (place / MANIFEST_NAME).is_file():
        raise CheckpointError(
            "is a run of ours, or a checkpoint of one; training.continue_from takes a step-N folder with its optimizer "
            "state, and what `megadeberta convert export` makes of it is weights to start from"
        )
    if not any(path.name in _WEIGHT_NAMES for path in place.iterdir()):
        raise CheckpointError("holds no weights; give what `megadeberta convert import` wrote, or takes")
    check_finite_at(place)


def check_ours(place: Path) -> None:
    """Refuse what can hold no weights of ours, by the names and sizes of its files.

    Raises:
        CheckpointError: neither a run with a checkpoint, nor a checkpoint, nor an imported folder; or a file of it is
            missing or has another size.
    """
    if not place.is_dir():
        what = "is a file" if place.exists() else "no such folder"
        raise CheckpointError(f"{place}: {what}; give the output folder of a run, or one of its step-N folders")
    if not (place / MODEL_JSON).is_file():
        manifest_at(place)


def check_foreign(place: Path) -> None:
    """Refuse what is ours already, where a model of others is to be read.

    Raises:
        CheckpointError: a run, a checkpoint, or an imported folder.
    """
    if (place / MODEL_JSON).is_file():
        raise CheckpointError(f"{place}: is an imported folder already; training.init_from takes it as it is")
    if (place / CHECKPOINTS_FOLDER).is_dir() or (place / MANIFEST_NAME).is_file():
        raise CheckpointError(
            f"{place}: is a run of ours, or a checkpoint of one, and not a model of transformers or microsoft/DeBERTa; "
            "`megadeberta convert export` makes one of it, and `megadeberta train` goes on with a run by itself"
        )


def _fetch(repo: str, revision: str | None) -> Path:
    """The snapshot of a repository, with no more files than a model of ours is made of."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError
    from huggingface_hub.utils import disable_progress_bars

    disable_progress_bars()
    api = HfApi()
    hint = _DOWNLOAD_HINT.format(repo=repo, folder=repo.partition("/")[2])
    try:
        info = api.model_info(repo, revision=revision, timeout=_SECONDS)
        chosen = _needed(file.rfilename for file in info.siblings or ())
        folder = Path(api.snapshot_download(repo, revision=info.sha, allow_patterns=chosen, etag_timeout=_SECONDS))
    except GatedRepoError:
        raise CheckpointError(
            f"{repo}: the hub shows it only to those who accepted its terms; do so, and `hf auth login`"
        ) from None
    except RevisionNotFoundError:
        raise CheckpointError(f"{repo}: the hub has no revision {revision!r} of it; see its files there") from None
    except RepositoryNotFoundError:
        raise CheckpointError(
            f"{repo}: no such folder here, and no such model on the hub (or it is private: `hf auth login`); "
            f"check the spelling; {hint}"
        ) from None
    except Exception as error:  # of an HTTP library that is another one in other versions of huggingface_hub
        cached = _cached(repo, revision)
        if cached is None:
            reason = " ".join(str(error).split())[:120] or type(error).__name__
            raise CheckpointError(
                f"{repo}: no such folder here, and the hub cannot be reached ({reason}); {hint}"
            ) from None
        folder = cached
    if not chosen_weights(path.name for path in folder.iterdir()):
        raise CheckpointError(f"{repo}: the repository holds no weights to read (safetensors or pickled torch)")
    return folder


def _cached(repo: str, revision: str | None) -> Path | None:
    """What an earlier call fetched, for a machine that has no network now."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(repo, "config.json", revision=revision)
    return Path(found).parent if isinstance(found, str) else None


def _needed(names: Any) -> list[str]:
    """Of a repository's files those to fetch: one copy of the weights, the generator's, and what says how to read."""
    there = list(names)
    wanted = (*_CONFIGS, *_TOKENIZERS, *chosen_weights(there), *_first(there, _GENERATORS))
    return [name for name in there if any(fnmatch(name, pattern) for pattern in wanted)]


def chosen_weights(names: Any) -> tuple[str, ...]:
    """Patterns of the weights to take among several copies of them; none where there are no weights."""
    return _first(list(names), _WEIGHTS)


def _first(names: Collection[str], choices: Collection[tuple[str, ...]]) -> tuple[str, ...]:
    return next((choice for choice in choices if choice[0] in names), ())
