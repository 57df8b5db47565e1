"""Which documents are nearly equal to an earlier one, over all parts of a corpus.

Three stages, each divided among workers and each kept by a killed run: a sketch of every document, the pairs of each
band, and the groups that pairs make. The result follows from the documents and their order alone. D documents.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from megadeberta.data.tokenizer import VocabularyTokenizer
from megadeberta.data_prep.left_out import shorten
from megadeberta.data_prep.machines import JoinedParts
from megadeberta.data_prep.near.exact import DocumentTexts
from megadeberta.data_prep.near.groups import DocumentGroups
from megadeberta.data_prep.near.links import LinkContext, find_links, read_links
from megadeberta.data_prep.near.sketches import BANDS, COMPARED, WORDS_COMPARED, SketchContext, SketchFiles, sketch_part
from megadeberta.data_prep.parts import PartStore
from megadeberta.data_prep.pool import run_in_order
from megadeberta.data_prep.progress import Stages
from megadeberta.errors import ConfigError, StorageError
from megadeberta.storage import free_bytes

_EXAMPLES = 3
_METHOD = "exact near the border"
"""Another text where other pairs are found: files of a killed run of before are not used."""
_DOCUMENTS_PER_WORKER = 1 << 14
"""A worker takes a third of a second to start: none for fewer."""


def check_near() -> None:
    """Refuse to look for near-duplicates without the package that sketches them.

    Raises:
        ConfigError: says how to install it.
    """
    if find_spec("rensa") is None:
        raise ConfigError("--deduplicate=near needs rensa: pip install 'megadeberta[dedup]'")


@dataclass(frozen=True)
class NearCopies:
    """What was found."""

    is_first: np.ndarray
    """``[D]`` booleans, of the documents that were compared, in their order."""
    examples: list[dict[str, str]]
    """The beginnings of a few documents that are left out, and of those they are like."""

    @property
    def num_documents(self) -> int:
        """Documents that are similar to an earlier one."""
        return int(len(self.is_first) - np.count_nonzero(self.is_first))


@dataclass(frozen=True)
class ComparedDocuments:
    """What is compared: of each of ``parts``, in order, the documents that ``chosen`` gives as ``[D]`` booleans."""

    store: PartStore | JoinedParts
    parts: list[int]
    chosen: Callable[[int], np.ndarray]

    @cached_property
    def firsts(self) -> np.ndarray:
        """``[parts + 1]``: the number of each part's first document among all, and how many there are."""
        return np.cumsum([0, *(int(np.count_nonzero(self.chosen(number))) for number in self.parts)])

    def num_tokens(self) -> int:
        """Of all documents of the parts."""
        return sum(int(self.store.documents(number)["length"].sum(dtype=np.int64)) for number in self.parts)

    def key(self, similarity: float) -> str:
        """A name for what is found with this ``similarity``."""
        digest = hashlib.blake2b(repr((similarity, COMPARED, WORDS_COMPARED, _METHOD)).encode(), digest_size=8)
        for number in self.parts:
            digest.update(self.store.documents(number).tobytes())
        return f"near-{digest.hexdigest()}"

    def start_of(self, document: int, tokenizer: VocabularyTokenizer) -> str:
        """The beginning of the text of a document, by its number among all."""
        place = int(np.searchsorted(self.firsts, document, side="right")) - 1
        number = self.parts[place]
        inside = int(np.flatnonzero(self.chosen(number))[document - self.firsts[place]])
        lengths = self.store.documents(number)["length"]
        for documents, tokens in self.store.token_groups(number):
            if documents.start <= inside < documents.stop:
                start = int(lengths[documents.start : inside].sum(dtype=np.int64))
                return shorten(tokenizer.decode(tokens[start : start + int(lengths[inside])].tolist()))
        raise AssertionError(f"document {document} is in no part")


def find_near_copies(
    compared: ComparedDocuments,
    *,
    tokenizer: VocabularyTokenizer,
    similarity: float,
    folder: Path,
    stages: Stages,
    workers: int,
) -> NearCopies:
    """Find which documents are similar to an earlier one.

    Args:
        similarity: see ``LinkContext``.
        folder: for temporary files, which a killed run finds again.

    Raises:
        StorageError: no room, or the file system refused.
    """
    files = SketchFiles(folder / compared.key(similarity), int(compared.firsts[-1]))
    _check_room(folder, files)
    files.create()
    run = partial(run_in_order, workers=min(workers, 1 + files.num_documents // _DOCUMENTS_PER_WORKER))
    kinds = tokenizer.piece_kinds()
    context = SketchContext(compared.store, files, kinds)
    stages.begin("sketching documents", total=compared.num_tokens(), unit="Mtokens")
    parts = zip(compared.parts, compared.firsts.tolist(), strict=False)
    for tokens in run(sketch_part, ((part, first, compared.chosen(part)) for part, first in parts), context=context):
        stages.advance(tokens)
    texts = DocumentTexts(compared.store, compared.parts, compared.firsts, files, kinds)
    links, groups = LinkContext(files, texts, similarity), DocumentGroups(files.folder / "parents", files.num_documents)
    stages.begin("comparing documents", total=BANDS * files.num_documents, unit="M documents")
    for bands in run(find_links, ((bands,) for bands in links.work()), context=links):
        for pairs in read_links(links, bands):
            groups.join(pairs)
        stages.advance(len(bands) * files.num_documents)
    is_first = groups.firsts()
    return NearCopies(is_first, _examples(compared, groups, is_first, tokenizer))


def _examples(
    compared: ComparedDocuments, groups: DocumentGroups, is_first: np.ndarray, tokenizer: VocabularyTokenizer
) -> list[dict[str, str]]:
    copies = np.flatnonzero(~is_first)[:_EXAMPLES].tolist()
    return [
        {name: compared.start_of(number, tokenizer) for name, number in (("left_out", copy), ("kept", kept))}
        for copy, kept in zip(copies, map(groups.first_of, copies), strict=True)
    ]


def _check_room(folder: Path, files: SketchFiles) -> None:
    needed, free = files.num_bytes, free_bytes(folder)
    if needed > free and not files.folder.exists():
        raise StorageError(
            f"cannot compare documents in {folder}: {needed} bytes needed for their sketches, {free} free; make room, "
            "then run the same command again: finished parts are kept"
        )
