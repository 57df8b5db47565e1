"""Exports for the Hugging Face hub: the upload, by revision, and the command for it. Without torch."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from megadeberta.errors import ConfigError, StorageError

_REPO = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_MAIN = "main"


@dataclass(frozen=True)
class Destination:
    """A model repository of the hub, checked before an export begins.

    Raises:
        ConfigError: no name of a repository, or nobody is logged in.
    """

    repo: str
    private: bool = False

    def __post_init__(self) -> None:
        from huggingface_hub import get_token

        if not _REPO.fullmatch(self.repo):
            raise ConfigError(f"--push {self.repo}: is no repository of the hub; write OWNER/MODEL")
        if get_token() is None:
            raise ConfigError(
                f"--push {self.repo}: nobody is logged in to the hub; run `hf auth login` or set HF_TOKEN"
            )


def upload_commands(folders: Mapping[str, Path], repo: str = "OWNER/MODEL") -> list[str]:
    """What publishes the exports from a shell, by revision."""
    return [
        f"hf upload {repo} {folder}" + ("" if revision == _MAIN else f" --revision {revision}")
        for revision, folder in folders.items()
    ]


def revisions(folders: Sequence[Path]) -> dict[str, Path]:
    """Where exports go in a repository: several, oldest first, under their own names and the last as main too."""
    named = {folder.name: folder for folder in folders} if len(folders) > 1 else {}
    return named | {_MAIN: folders[-1]}


def push(folders: Mapping[str, Path], to: Destination) -> str:
    """Upload exports, by revision; a repository that is not there is made.

    Returns:
        The repository's address.

    Raises:
        StorageError: the hub cannot be reached or refuses; the exports stay where they are.
    """
    from huggingface_hub import HfApi

    api = HfApi()
    try:
        address = str(api.create_repo(to.repo, private=to.private or None, exist_ok=True))
        for revision, folder in folders.items():
            if revision != _MAIN:
                api.create_branch(to.repo, branch=revision, exist_ok=True)
            api.upload_folder(
                repo_id=to.repo,
                folder_path=folder,
                revision=revision,
                commit_message=f"Export of megadeberta, {folder.name}",
            )
    except Exception as error:  # of an HTTP library that is another one in other versions of huggingface_hub
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        later = "; ".join(f"`{command}`" for command in upload_commands(folders, to.repo))
        raise StorageError(f"the export is written, but {to.repo} was not pushed ({reason}); later: {later}") from None
    return address
