"""The whole preparation: right ids, the same bytes however it was run, and nothing whole that is not finished."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import sentencepiece
from rich.console import Console

import megadeberta.data_prep.prepare
from megadeberta.data.indexed import TokenShard
from megadeberta.data_prep.cleaning import clean
from megadeberta.data_prep.options import (
    Deduplication,
    DocumentPer,
    PrepOptions,
    ReadOptions,
    SplitOptions,
    VocabularyOptions,
)
from megadeberta.data_prep.prepare import Outcome, prepare
from megadeberta.data_prep.verify import verify_set
from megadeberta.errors import DataError
from tests.data_fixtures import SOTU

FILES = ("train.bin", "train.idx", "train.json", "valid.bin", "valid.idx", "valid.json", "tokenizer/spm.model")


def run(*corpora: Path, output: Path, tokenizer: Path | None = None, **options: Any) -> Outcome:
    vocabulary = VocabularyOptions(tokenizer=tokenizer) if tokenizer else VocabularyOptions(size=600)
    prepared = PrepOptions(**{"corpora": corpora, "output": output, "vocabulary": vocabulary, **options})
    return prepare(prepared, console=Console(quiet=True), plot=lambda folder, lengths: None)


def files_of(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in FILES}


@pytest.fixture
def model(prepared: Path) -> Path:
    return prepared / "tokenizer" / "spm.model"


def test_ids_are_sentencepieces_own_for_each_clean_document(prepared: Path, model: Path) -> None:
    processor = sentencepiece.SentencePieceProcessor(model_file=str(model))
    texts = [clean(text) for text in SOTU.read_text().split("\n\n")]
    expected = {tuple(processor.EncodeAsIds(text)) for text in texts}
    found = []
    for split in ("train", "valid"):
        with TokenShard.open(prepared / split) as shard:
            found += [tuple(shard.document(i).tolist()) for i in range(shard.num_documents)]
    assert set(found) == expected and len(found) == len(texts) == 25


def test_special_ids_are_those_of_the_published_models(model: Path) -> None:
    processor = sentencepiece.SentencePieceProcessor(model_file=str(model))
    assert [processor.id_to_piece(i) for i in range(4)] == ["[PAD]", "[CLS]", "[SEP]", "[UNK]"]
    assert processor.get_piece_size() == 1000
    assert processor.piece_to_id("[MASK]") == processor.unk_id()
    listing = model.with_suffix(".vocab").read_text().splitlines()
    assert [line.split("\t")[0] for line in listing] == [processor.id_to_piece(i) for i in range(1000)]


def test_bytes_are_the_same_for_any_number_of_workers(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(megadeberta.data_prep.prepare, "choose_block_bytes", lambda sources: 50_000)
    for workers, tokenizer in ((1, None), (2, None), (1, model), (3, model)):
        name = f"{workers}-{tokenizer is model}"
        run(SOTU, output=tmp_path / name, tokenizer=tokenizer, split=SplitOptions(fraction=0.2), workers=workers)
    assert files_of(tmp_path / "2-False") == files_of(tmp_path / "1-False")
    assert files_of(tmp_path / "3-True") == files_of(tmp_path / "1-True")


def test_a_killed_run_goes_on_and_gives_the_same_bytes(tmp_path: Path) -> None:
    run(SOTU, output=tmp_path / "whole")
    script = Path(__file__).parent / "slow_prep.py"
    output, seen = tmp_path / "killed", []

    def start(pause: float, workers: int) -> subprocess.Popen:
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
        arguments = [str(SOTU), str(output), str(workers), str(pause)]
        return subprocess.Popen([sys.executable, str(script), *arguments], env=environment)

    # Killed while the vocabulary is trained, then with more and more parts done; one process and several.
    for parts, workers in ((0, 1), (2, 1), (5, 2), (12, 1)):
        process = start(0.15, workers)
        wait_for(lambda parts=parts: (output / ".parts").exists() and len(marks(output)) >= parts)
        children = psutil.Process(process.pid).children(recursive=True)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        wait_for(lambda children=children: not any(is_alive(child) for child in children))
        with pytest.raises(DataError, match=r"holds no train\.bin.*; start it again|not found"):
            verify_set(output)
        seen.append(len(marks(output)))
    assert seen == sorted(seen) and seen[-1] >= 12
    assert start(0.0, 1).wait() == 0
    assert files_of(output) == files_of(tmp_path / "whole")
    assert not (output / ".parts").exists()


def marks(output: Path) -> list[Path]:
    return list(output.glob(".parts/*/part-*.json"))


def is_alive(process: psutil.Process) -> bool:
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE


def wait_for(condition: Any) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_damaged_part_of_a_killed_run_is_made_again(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(megadeberta.data_prep.prepare, "choose_block_bytes", lambda sources: 50_000)
    run(SOTU, output=tmp_path / "whole", tokenizer=model)
    with monkeypatch.context() as patch:
        patch.setattr(
            megadeberta.data_prep.prepare.Publication,
            "publish",
            lambda *a, **k: (_ for _ in ()).throw(KeyboardInterrupt),
        )
        with pytest.raises(KeyboardInterrupt):
            run(SOTU, output=tmp_path / "cut", tokenizer=model)
    found = sorted(tmp_path.glob("cut/.parts/*/part-*.tokens"))
    assert len(found) >= 6
    found[0].write_bytes(found[1].read_bytes())
    os.truncate(found[2], 10)
    found[3].with_suffix(".documents").unlink()
    found[4].with_suffix(".json").write_text("[")
    run(SOTU, output=tmp_path / "cut", tokenizer=model)
    assert files_of(tmp_path / "cut") == files_of(tmp_path / "whole")


def test_the_same_command_again_does_nothing(tmp_path: Path, model: Path) -> None:
    first = run(SOTU, output=tmp_path / "a", tokenizer=model)
    before = {name: (tmp_path / "a" / name).stat().st_mtime_ns for name in FILES}
    again = run(SOTU, output=tmp_path / "a", tokenizer=model)
    assert again.was_finished and not first.was_finished
    assert (again.train, again.valid) == (first.train, first.valid)
    assert before == {name: (tmp_path / "a" / name).stat().st_mtime_ns for name in FILES}


def test_a_finished_set_of_another_command_is_kept_unless_overwritten(tmp_path: Path, model: Path) -> None:
    run(SOTU, output=tmp_path / "a", tokenizer=model)
    kept = files_of(tmp_path / "a")
    other = {"output": tmp_path / "a", "tokenizer": model, "split": SplitOptions(fraction=0)}
    with pytest.raises(DataError, match=r"holds a finished set with other valid_fraction; choose another folder, or"):
        run(SOTU, **other)
    assert files_of(tmp_path / "a") == kept
    run(SOTU, **other, overwrite=True)
    assert not list((tmp_path / "a").glob("valid.*"))
    assert verify_set(tmp_path / "a").shards["train"].num_documents == 25


def test_a_changed_corpus_is_not_taken_for_the_finished_one(tmp_path: Path, model: Path) -> None:
    corpus = tmp_path / "a.txt"
    corpus.write_text(SOTU.read_text()[:20_000])
    run(corpus, output=tmp_path / "a", tokenizer=model, split=SplitOptions(fraction=0))
    corpus.write_text(SOTU.read_text()[:20_010])
    with pytest.raises(DataError, match="holds a finished set from other files or another tokenizer"):
        run(corpus, output=tmp_path / "a", tokenizer=model, split=SplitOptions(fraction=0))


def test_shards_of_unknown_origin_are_not_replaced(tmp_path: Path, model: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "train.bin").write_bytes(b"precious")
    with pytest.raises(DataError, match=r"already has train\.bin and no manifest .* or --overwrite"):
        run(SOTU, output=tmp_path / "a", tokenizer=model)
    assert (tmp_path / "a" / "train.bin").read_bytes() == b"precious"
    run(SOTU, output=tmp_path / "a", tokenizer=model, overwrite=True)
    verify_set(tmp_path / "a")


def test_validation_documents_are_a_share_picked_by_content_and_never_in_train(tmp_path: Path, model: Path) -> None:
    corpus = tmp_path / "a.txt"
    lines = [f"the {'of ' * (i % 300 % 17)}and {'to ' * (i % 300 // 17)}country" for i in range(1000)]
    corpus.write_text("\n".join(lines))
    per_line = ReadOptions(document_per=DocumentPer.LINE)
    outcome = run(corpus, output=tmp_path / "a", tokenizer=model, read=per_line, split=SplitOptions(fraction=0.1))
    documents = {}
    for split in ("train", "valid"):
        with TokenShard.open(tmp_path / "a" / split) as shard:
            documents[split] = [shard.document(i).tobytes() for i in range(shard.num_documents)]
    assert outcome.valid is not None and 100 <= outcome.valid.num_documents < 104
    assert not set(documents["train"]) & set(documents["valid"])
    assert len(documents["train"]) + len(documents["valid"]) == 1000

    corpus.write_text("\n".join(reversed(lines)))
    run(corpus, output=tmp_path / "b", tokenizer=model, read=per_line, split=SplitOptions(documents=100))
    with TokenShard.open(tmp_path / "b" / "valid") as shard:
        assert [shard.document(i).tobytes() for i in range(shard.num_documents)] == documents["valid"][::-1]


def test_a_validation_corpus_of_its_own_is_cleaned_alike_and_trains_no_piece(tmp_path: Path) -> None:
    train, valid = tmp_path / "train.txt", tmp_path / "valid.txt"
    text = SOTU.read_text()
    train.write_text(text[:200_000])
    valid.write_text("Zyzzyva  quokka\x07.\n\nzyzzyva.")
    outcome = run(train, output=tmp_path / "a", valid_corpora=(valid,))
    assert outcome.valid is not None and outcome.valid.num_documents == 2
    assert [source.name for source in outcome.valid.sources] == ["valid.txt"]
    processor = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "a" / "tokenizer" / "spm.model"))
    with TokenShard.open(tmp_path / "a" / "valid") as shard:
        assert shard.document(0).tolist() == processor.EncodeAsIds("Zyzzyva quokka.")
    assert processor.piece_to_id("zyzzyva") == processor.unk_id()


def test_a_vocabulary_above_65499_is_written_as_int32(tmp_path: Path, model: Path) -> None:
    big = tmp_path / "big.model"
    big.write_bytes(with_unused_pieces(model.read_bytes(), 70_000))
    outcome = run(SOTU, output=tmp_path / "a", tokenizer=big)
    assert outcome.train.dtype == "int32"
    with TokenShard.open(tmp_path / "a" / "train", verify_hash=True) as wide:
        run(SOTU, output=tmp_path / "b", tokenizer=model)
        with TokenShard.open(tmp_path / "b" / "train") as narrow:
            assert np.array_equal(wide.read_tokens(0, 5000), narrow.read_tokens(0, 5000))


def with_unused_pieces(model: bytes, count: int) -> bytes:
    """The model with unused pieces appended: repeated field 1 of ModelProto, each a piece, a score and type 5."""
    pieces = []
    for number in range(count):
        name = b"<%06d>" % number
        body = b"\x0a" + bytes([len(name)]) + name + b"\x15\x00\x00\x00\xc2" + b"\x18\x05"
        pieces.append(b"\x0a" + bytes([len(body)]) + body)
    return model + b"".join(pieces)


def test_report_counts_what_was_read(prepared: Path) -> None:
    report = json.loads((prepared / "report.json").read_bytes())
    assert report["corpus"]["documents"] == 25
    assert report["corpus"]["text_bytes"] == SOTU.stat().st_size
    assert report["corpus"]["bad_lines"] == {}
    with TokenShard.open(prepared / "train") as train, TokenShard.open(prepared / "valid") as valid:
        assert report["num_tokens"] == train.num_tokens + valid.num_tokens
        assert report["document_tokens"]["max"] >= max(np.diff(train.document_offsets))


def test_manifest_holds_options_and_sources_but_nothing_of_the_machine(prepared: Path, tmp_path: Path) -> None:
    manifest = json.loads((prepared / "train.json").read_bytes())
    assert manifest["options"]["vocab_size"] == 1000 and manifest["options"]["split"] == "train"
    assert manifest["sources"] == [{"name": "sotu.txt", "bytes": SOTU.stat().st_size}]
    assert str(prepared) not in (prepared / "train.json").read_text()
    always = {field.name for field in dataclasses.fields(ReadOptions)} - {"quality", "test_sets", "decontaminate_by"}
    always -= {"count_languages"}  # changes nothing of the set
    assert always <= set(manifest["options"])


def test_equal_documents_are_counted_and_left_out_where_that_is_asked(tmp_path: Path, model: Path) -> None:
    texts = [f"Document number {i} of the corpus." for i in range(40)]
    (tmp_path / "a.txt").write_text("\n\n".join([*texts, *texts[:10]]))
    (tmp_path / "b.txt").write_text("\n\n".join([texts[3], "A new one.", texts[3]]))
    (tmp_path / "v.txt").write_text("\n\n".join([texts[5], "Only for validation."]))
    found = {}
    for choice in (Deduplication.NONE, Deduplication.EXACT):
        output = tmp_path / choice
        options = {"valid_corpora": (tmp_path / "v.txt",), "deduplicate": choice, "max_unknown_fraction": 1.0}
        outcome = run(tmp_path / "a.txt", tmp_path / "b.txt", output=output, tokenizer=model, **options)
        assert outcome.valid is not None
        found[choice] = (outcome.train.num_documents, outcome.valid.num_documents)
        assert json.loads((output / "report.json").read_bytes())["copied_documents"] == 13
        verify_set(output)
    # 10 copies in a.txt, 2 in b.txt, and the one that is in the validation corpus too.
    assert found == {Deduplication.NONE: (53, 2), Deduplication.EXACT: (40, 2)}
