"""Precision, recall and documents per CPU second of `prep --deduplicate=near`, on real text with planted copies.

    python benchmarks/near_duplicates.py corpora/wikitext2/train.raw.gz --tokenizer spm.model

A tenth of the paragraphs (of 40 words or more) get a copy in which a fraction of the words is replaced by other words
of the text, removed, or joined by another, at random places. Charged is what comes after encoding: sketches, bands,
groups.
"""

import argparse
import gzip
import random
import re
import tempfile
import time
from pathlib import Path

import numpy as np
from rich.console import Console

from megadeberta.data.index_layout import smallest_dtype
from megadeberta.data.tokenizer import VocabularyTokenizer, load_tokenizer
from megadeberta.data_prep.bad_lines import Tally
from megadeberta.data_prep.near.find import ComparedDocuments, find_near_copies
from megadeberta.data_prep.parts import DOCUMENT_RECORD, Part, PartOf, PartStore
from megadeberta.data_prep.progress import Stages

RATES = (0.01, 0.05, 0.1, 0.15, 0.2)


def main() -> None:
    """Print one row per rate of edits."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("corpus", type=Path, help="plain text, or .gz; a document is a paragraph")
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--similarity", type=float, default=0.75)
    parser.add_argument("--fewest-words", type=int, default=40)
    parser.add_argument("--workers", type=int, default=1)
    arguments = parser.parse_args()
    opener = gzip.open if arguments.corpus.suffix == ".gz" else open
    with opener(arguments.corpus, "rt", encoding="utf-8") as file:
        texts = [" ".join(lines.split()) for lines in re.split(r"\n\s*\n", file.read())]
    documents = list(dict.fromkeys(text for text in texts if len(text.split()) >= arguments.fewest_words))
    tokenizer = load_tokenizer(arguments.tokenizer)
    print(f"{len(documents)} documents, {sum(map(len, documents)) / len(documents):.0f} characters each")
    print(f"{'edits':>6} {'precision':>10} {'recall':>8} {'documents per cpu-s':>20}")
    for rate in RATES:
        print(f"{rate:6.0%}", measure(documents, rate, tokenizer, arguments))


def measure(documents: list[str], rate: float, tokenizer: VocabularyTokenizer, arguments: argparse.Namespace) -> str:
    """Plant, search, compare."""
    generator = random.Random(round(rate * 1000))
    words = " ".join(generator.sample(documents, min(500, len(documents)))).split()
    originals = generator.sample(range(len(documents)), len(documents) // 10)
    planted = [edited(documents[number], rate, words, generator) for number in originals]
    texts = [*documents, *planted]
    pairs = dict(enumerate(originals, len(documents)))
    order = generator.sample(range(len(texts)), len(texts))
    is_planted, seen = np.zeros(len(texts), dtype=bool), set()
    for place, number in enumerate(order):
        group = pairs.get(number, number)
        is_planted[place] = group in seen
        seen.add(group)
    with tempfile.TemporaryDirectory() as folder, Stages(Console(quiet=True)) as stages:
        store = write_parts(Path(folder), [texts[number] for number in order], tokenizer)
        began = time.process_time()
        found = find_near_copies(
            ComparedDocuments(store, [0], lambda number: np.ones(len(texts), dtype=bool)),
            tokenizer=tokenizer,
            similarity=arguments.similarity,
            folder=store.folder,
            stages=stages,
            workers=arguments.workers,
        )
        seconds = time.process_time() - began
    both = np.count_nonzero(is_planted & ~found.is_first)
    precision, recall = both / max(1, found.num_documents), both / np.count_nonzero(is_planted)
    return f"{precision:10.3f} {recall:8.3f} {len(texts) / seconds:20,.0f}"


def edited(text: str, rate: float, words: list[str], generator: random.Random) -> str:
    """Replace, remove or double ``rate`` of the words."""
    out: list[str] = text.split()
    for place in generator.sample(range(len(out)), max(1, round(rate * len(out)))):
        other = generator.choice(words)
        out[place] = generator.choice([other, other, "", f"{out[place]} {other}"])
    return " ".join(" ".join(out).split())


def write_parts(folder: Path, texts: list[str], tokenizer: VocabularyTokenizer) -> PartStore:
    """The texts as one finished part."""
    store = PartStore(folder, "parts", dtype=smallest_dtype(tokenizer.vocab_size_needed))
    store.create()
    draft = store.drafts(0)
    encoded = [np.array(tokenizer.encode(text), dtype=store.dtype) for text in texts]
    records = np.zeros(len(texts), dtype=DOCUMENT_RECORD)
    records["length"] = [len(document) for document in encoded]
    records["key"] = np.arange(len(texts))
    draft.tokens.write_bytes(np.concatenate(encoded).tobytes())
    draft.documents.write_bytes(records.tobytes())
    store.save(Part(0, 0, (PartOf(0, int(records["length"].sum()), 0, Tally()),)), draft)
    return store


if __name__ == "__main__":
    main()
