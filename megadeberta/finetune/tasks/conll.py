"""Named entities of CoNLL-2003, from its column files: word, part of speech, phrase, entity, and blank lines between.

Every document begins with a -DOCSTART- line, which is no sentence.
"""

from collections.abc import Sequence
from pathlib import Path

from megadeberta.errors import DataError
from megadeberta.finetune.chunk_metric import chunk_metrics
from megadeberta.finetune.rows import Prediction, Row, Splits, TokenRow
from megadeberta.finetune.tables import read_text
from megadeberta.finetune.task import Columns, Defaults, Task

_FILES = {
    "train": ("eng.train", "train.txt"),
    "dev": ("eng.testa", "valid.txt", "dev.txt"),
    "test": ("eng.testb", "test.txt"),
}


def _read(folder: Path, columns: Columns) -> Splits:
    found = {
        split: next((folder / name for name in names if (folder / name).is_file()), None)
        for split, names in _FILES.items()
    }
    train, dev, test = found["train"], found["dev"], found["test"]
    if train is None or dev is None:
        missing = "train" if train is None else "dev"
        raise DataError(f"{folder}: holds none of {', '.join(_FILES[missing])}, the {missing} set of CoNLL-2003")
    return Splits(read_columns(train), {"dev": read_columns(dev)}, {} if test is None else {"test": read_columns(test)})


def read_columns(path: Path) -> list[TokenRow]:
    """Sentences of a column file: the first column is the word, the last its tag."""
    rows: list[TokenRow] = []
    words: list[str] = []
    tags: list[str] = []
    for number, line in enumerate([*read_text(path).split("\n"), ""], start=1):
        fields = line.split()
        if not fields or fields[0] == "-DOCSTART-":
            if words:
                rows.append(TokenRow(str(len(rows)), tuple(words), tuple(tags)))
            words, tags = [], []
            continue
        if len(fields) < 2:
            raise DataError(f"{path}: line {number} has one column, {fields[0]!r}; a word and its tag are needed")
        words.append(fields[0])
        tags.append(fields[-1])
    if not rows:
        raise DataError(f"{path}: holds no sentences")
    return rows


def _submission(name: str, rows: Sequence[Row], predictions: Sequence[Prediction]) -> tuple[str, str]:
    """Word, right tag and predicted tag, as the official conlleval script reads them."""
    sentences = []
    for row, prediction in zip(rows, predictions, strict=True):
        assert isinstance(row, TokenRow) and row.tags is not None and isinstance(prediction.value, tuple)
        lines = zip(row.words, row.tags, prediction.value, strict=True)
        sentences.append("".join(f"{word} {gold} {found}\n" for word, gold, found in lines))
    return f"{name}.conlleval", "\n".join(sentences)


CONLL = (
    Task(
        name="conll2003",
        summary="CoNLL-2003: persons, organisations, places and other names",
        kind="tokens",
        read=_read,
        metrics=chunk_metrics,
        main="f1",
        defaults=Defaults(512, epochs=15, batch_size=16, warmup=100, dropout=0.0),
        submission=_submission,
    ),
)
