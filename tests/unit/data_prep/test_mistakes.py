"""What users get wrong with `prep` and `verify`: one line that says what to do, and nothing that looks whole."""

import errno
import gzip
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
import zstandard
from typer.testing import CliRunner

import megadeberta.data_prep.merge
import megadeberta.data_prep.parts
from megadeberta import storage
from megadeberta.data.shard_writer import ShardWriter
from megadeberta.data_prep.cli import prep, verify
from megadeberta.data_prep.output_folder import OutputFolder
from megadeberta.errors import ConfigError, DataError, MegadebertaError, StorageError, WrongPlaceError
from tests.data_fixtures import SOTU

app = typer.Typer()
app.command()(prep)
app.command()(verify)


def invoke(*arguments: object) -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def failure(*arguments: object, kind: type[MegadebertaError] = DataError) -> str:
    """The message of a command that must fail with one line and an error of ``kind``."""
    error = invoke(*arguments).exception
    assert isinstance(error, kind), error
    assert error.exit_code == (79 if kind is StorageError else 2)
    assert "\n" not in str(error)
    return str(error)


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "out"


@pytest.fixture
def model(prepared: Path) -> Path:
    return prepared / "tokenizer" / "spm.model"


def left_in(folder: Path) -> list[str]:
    """What a failed run left, apart from the parts that the next one goes on from."""
    return sorted(path.name for path in folder.iterdir() if path.name != ".parts")


def write(path: Path, payload: bytes | str) -> Path:
    path.write_bytes(payload.encode() if isinstance(payload, str) else payload)
    return path


def test_prep_and_verify_print_what_they_made(output: Path, model: Path) -> None:
    result = invoke("prep", SOTU, "-o", output, "--tokenizer", model, "--workers", "1")
    assert result.exit_code == 0, result.exception
    assert result.output.splitlines()[-1].startswith(
        f"{output}: train 99,056 tokens in 24 documents; valid 3,601 tokens"
    )
    assert (output / "lengths.png").read_bytes().startswith(b"\x89PNG")
    again = invoke("prep", SOTU, "-o", output, "--tokenizer", model)
    assert again.output.startswith(f"{output} was finished already: train 99,056 tokens")
    checked = invoke("verify", output)
    assert "99,056" in checked.output and "all sound; tokenizer 1000 pieces" in checked.output


def test_a_path_that_is_not_there_suggests_the_nearest(tmp_path: Path, output: Path) -> None:
    write(tmp_path / "corpus.txt", "text")
    message = failure("prep", tmp_path / "corpsu.txt", "-o", output, "--vocab-size", "100")
    assert f"corpsu.txt: not found; did you mean {tmp_path / 'corpus.txt'}?" in message
    message = failure("prep", tmp_path / "no" / "such", "-o", output, "--vocab-size", "100")
    assert "not found" in message and not output.exists()


def test_an_empty_corpus_is_refused(tmp_path: Path, output: Path) -> None:
    empty = write(tmp_path / "empty.txt", "")
    assert "the corpus is empty: 1 file(s), 0 bytes" in failure("prep", empty, "-o", output, "--vocab-size", "100")
    message = failure("prep", SOTU, "--valid", empty, "-o", output, "--vocab-size", "100")
    assert "the validation corpus is empty" in message
    (tmp_path / "folder").mkdir()
    write(tmp_path / "folder" / "data.parquet", "x")
    message = failure("prep", tmp_path / "folder", "-o", output, "--vocab-size", "100")
    assert "folder/data.parquet: is not Parquet, although its name ends in .parquet" in message
    message = failure("prep", tmp_path / "folder", "-o", output, "--vocab-size", "100", "--on-unreadable", "skip")
    assert "no corpus file in this folder; it holds 1 other file(s), first folder/data.parquet; looked for" in message


def test_a_corpus_without_any_document_is_refused(tmp_path: Path, output: Path, model: Path) -> None:
    blank = write(tmp_path / "blank.txt", "\n \n\x01\n")
    for vocabulary in (("--vocab-size", "100"), ("--tokenizer", model)):
        assert "no document in 1 file(s): 3 lines" in failure("prep", blank, "-o", output, *vocabulary)
    invisible = write(tmp_path / "invisible.txt", "\u200b\n\n\u200b")
    assert "no train document has any token" in failure("prep", invisible, "-o", output, "--tokenizer", model)
    message = failure("prep", SOTU, "--valid", invisible, "-o", output, "--tokenizer", model)
    assert "no valid document has any token" in message
    assert left_in(output) == []


def test_one_document_cannot_be_split(tmp_path: Path, output: Path, model: Path) -> None:
    corpus = write(tmp_path / "a.txt", "one document\nand no other\n\n")
    message = failure("prep", corpus, "-o", output, "--tokenizer", model)
    assert "the corpus has 1 documents (1 different) and 1 would go to validation" in message
    corpus = write(tmp_path / "b.txt", "the same\n\n" * 10)
    message = failure("prep", corpus, "-o", output, "--tokenizer", model)
    assert "10 documents (1 different) and 1 would go to validation" in message


def test_a_vocabulary_the_corpus_cannot_give_says_the_largest(output: Path) -> None:
    message = failure("prep", SOTU, "-o", output, "--vocab-size", "50000")
    assert "--vocab-size=50000 is more than this corpus allows" in message
    largest = int(message.split("at most ")[1].split(" ")[0])
    assert f"choose --vocab-size={largest} or less" in message
    assert "the characters of" in failure("prep", SOTU, "-o", output, "--vocab-size", "40")
    result = invoke("prep", SOTU, "-o", output, "--vocab-size", largest)
    assert result.exit_code == 0, result.exception


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "give either --vocab-size, to train a vocabulary, or --tokenizer"),
        (("--vocab-size", "100", "--tokenizer", "x"), "give either --vocab-size"),
        (("--vocab-size", "3"), "--vocab-size=3; choose 16 to 1000000"),
        (("--vocab-size", "100", "--character-coverage", "0.2"), "--character-coverage=0.2; choose 0.9 to 1"),
        (("--vocab-size", "100", "--vocab-sample-bytes", "9"), "--vocab-sample-bytes=9; choose 65536 or more"),
        (("--vocab-size", "100", "--valid-fraction", "1"), "--valid-fraction=1; choose 0 (no validation)"),
        (("--vocab-size", "100", "--valid-documents", "-1"), "--valid-documents=-1; choose 0 or more"),
        (("--vocab-size", "100", "--max-bad-fraction", "2"), "--max-bad-fraction=2; choose 0 to 1"),
        (("--vocab-size", "100", "--max-line-bytes", "9"), "--max-line-bytes=9; choose 1024 to"),
        (("--vocab-size", "100", "--max-expansion", "1"), "--max-expansion=1; choose 2 or more"),
        (("--vocab-size", "100", "--text-key", ""), "--text-key is empty"),
        (("--vocab-size", "100", "--workers", "-2"), "--workers=-2; choose 1 to 4096"),
    ],
)
def test_a_wrong_option_names_itself_and_its_range(output: Path, arguments: tuple[str, ...], message: str) -> None:
    assert message in failure("prep", SOTU, "-o", output, *arguments, kind=ConfigError)
    assert not output.exists()


def test_a_tokenizer_that_is_none_is_refused(tmp_path: Path, output: Path) -> None:
    for path in (tmp_path / "none.model", write(tmp_path / "bad.model", b"garbage" * 99), write(tmp_path / "e", b"")):
        assert str(path) in failure("prep", SOTU, "-o", output, "--tokenizer", path)
    assert not output.exists()


@pytest.mark.parametrize(
    ("name", "payload", "message"),
    [
        ("a.txt.gz", b"plain text", "ends in .gz but holds no gzip data"),
        ("a.zst", b"", "ends in .zst but holds no zstd data"),
        ("a.jsonl", b"PK\x03\x04", "is a zip archive; unpack it"),
        ("a.txt", "text".encode("utf-16"), "is UTF-16; convert it: iconv -f UTF-16"),
        ("a.txt", "text of some length".encode("utf-16-le"), "is UTF-16 or UTF-32 without a mark; convert it: iconv"),
        ("a.txt", bytes(range(32)) * 9, "is binary data; give files that hold text"),
        ("a.parquet", b"text", "is not Parquet, although its name ends in .parquet; fetch it again or rename it"),
        ("a.json", b'[{"text": "a"}, {"text": "b"}]', "is a JSON array; make JSON lines of it: jq -c '.[]'"),
        ("a.json", b'{\n "text": "a"\n}\n', "is one JSON document over several lines; make JSON lines of it: jq -c ."),
        ("a.txt", b"<!DOCTYPE html><p>text</p>", "is HTML; extract its text first"),
        ("a.txt", b"<?xml version='1.0'?><a>text</a>", "is XML; write its text as JSON lines"),
    ],
)
def test_a_file_that_is_no_text_is_named(tmp_path: Path, output: Path, name: str, payload: bytes, message: str) -> None:
    corpus = write(tmp_path / name, payload)
    assert f"{corpus}: {message}" in failure("prep", corpus, "-o", output, "--vocab-size", "100")


def test_a_file_given_twice_is_refused(tmp_path: Path, output: Path) -> None:
    corpus = write(tmp_path / "a.txt", "text")
    message = failure("prep", corpus, tmp_path, "-o", output, "--vocab-size", "100")
    assert "is given twice" in message
    message = failure("prep", corpus, "--valid", corpus, "-o", output, "--vocab-size", "100")
    assert "is given both for training and for validation" in message


def test_too_many_bad_lines_fail_with_the_first_place_and_leave_nothing(
    tmp_path: Path, output: Path, model: Path
) -> None:
    good = [json.dumps({"text": f"record {i}"}) for i in range(97)]
    lines = [*good[:40], '{"txt": 1}', *good[40:], '{"text": 1}', '{"txt": 2}']
    corpus = write(tmp_path / "a.jsonl", "\n".join(lines))
    at = sum(len(line) + 1 for line in good[:40])
    expected = f"most: 2 x no such key, first at a.jsonl:41 (byte {at}): has 'txt', not 'text'"
    for vocabulary in (("--tokenizer", model), ("--vocab-size", "60")):
        message = failure("prep", corpus, "-o", output, *vocabulary)
        assert message.startswith("3 of 100 lines cannot be used (3.00%, allowed 1.00%); ") and expected in message
    assert left_in(output) == []
    message = failure("prep", corpus, "-o", output, "--tokenizer", model, "--on-bad-line", "stop")
    assert message.startswith(f"a.jsonl:41 (byte {at}): has 'txt', not 'text': no such key; fix it, or use")
    result = invoke(
        "prep", corpus, "-o", output, "--tokenizer", model, "--max-bad-fraction", "0.05", "--max-unknown-fraction", "1"
    )
    assert result.exit_code == 0, result.exception
    report = json.loads((output / "report.json").read_bytes())["corpus"]
    assert report["documents"] == 97 and report["rejected_lines"] == 3
    assert report["bad_lines"]["wrong_type"]["count"] == 1


def test_line_numbers_run_through_the_blocks_of_a_file(
    tmp_path: Path, output: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("megadeberta.data_prep.prepare.choose_block_bytes", lambda sources: 1000)
    lines = [b"line %d" % i for i in range(500)]
    lines[432] = b"\xff"
    corpus = write(tmp_path / "a.txt.zst", zstandard.compress(b"\n".join(lines)))
    message = failure(
        "prep", corpus, "-o", output, "--tokenizer", model, "--on-bad-line", "stop", "--document-per", "line", "-j", 1
    )
    at = sum(len(line) + 1 for line in lines[:432])
    assert message.startswith(f"a.txt.zst:433 (byte {at}): byte 0xff at 0: not valid UTF-8")


def test_a_truncated_file_fails_unless_allowed(tmp_path: Path, output: Path, model: Path) -> None:
    packed = gzip.compress(SOTU.read_bytes())
    corpus = write(tmp_path / "a.txt.gz", packed[: len(packed) // 2])
    arguments = ("prep", corpus, "-o", output, "--tokenizer", model)
    message = failure(*arguments)
    assert "1 of 1 files cannot be used" in message and "compressed file ends early, first at a.txt.gz (byte" in message
    assert "compressed file ends early" in failure(*arguments, "--on-bad-line", "stop")
    assert left_in(output) == []
    assert invoke(*arguments, "--max-bad-fraction", "1").exit_code == 0


def test_an_output_folder_in_use_is_refused(output: Path, model: Path) -> None:
    with OutputFolder(output).lock():
        message = failure("prep", SOTU, "-o", output, "--tokenizer", model)
    assert f"--output={output} is in use by another `megadeberta prep`" in message


def test_an_output_that_is_a_file_or_cannot_be_made_is_refused(tmp_path: Path, model: Path) -> None:
    file = write(tmp_path / "file", "x")
    assert "is a file; give a folder" in failure("prep", SOTU, "-o", file, "--tokenizer", model)
    message = failure("prep", SOTU, "-o", file / "below", "--tokenizer", model, kind=WrongPlaceError)
    assert message == f"cannot write {file / 'below'}: {file} is a file; choose another name"


def test_a_full_disk_stops_with_the_free_bytes_and_the_run_goes_on_later(
    output: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ("prep", SOTU, "-o", output, "--tokenizer", model)
    with monkeypatch.context() as patch:
        patch.setattr(megadeberta.data_prep.merge, "free_bytes", lambda path: 1000)
        message = failure(*arguments, kind=StorageError)
        assert "bytes needed, 1000 free; make room" in message
    with monkeypatch.context() as patch:
        patch.setattr(storage.os, "replace", full)
        assert "No space left on device (more bytes needed" in failure(*arguments, kind=StorageError)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", full)
        patch.setattr(megadeberta.data_prep.parts.PartStore, "load", lambda *a: None)
        assert "part-000000.json: No space left on device (" in failure(*arguments, kind=StorageError)
    assert left_in(output) == []
    assert invoke(*arguments).exit_code == 0


def full(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_token_beyond_the_tokenizer_is_found_by_verify(output: Path, model: Path) -> None:
    result = invoke("prep", SOTU, "-o", output, "--tokenizer", model)
    assert result.exit_code == 0, result.exception
    manifest = json.loads((output / "train.json").read_bytes())
    with ShardWriter(output / "train", dtype="u2") as writer:
        writer.add_document([5, 1000])
        writer.commit(tokenizer_sha256=manifest["tokenizer_sha256"], tokenizer_pieces=1000)
    assert "largest token id 1000, the tokenizer has 1000 pieces" in failure("verify", output)


def run_apart(code: str, *arguments: object) -> subprocess.CompletedProcess:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


MAIN = "import sys, typer; from megadeberta.data_prep.cli import prep; typer.run(prep)"
# Not ru_maxrss: it starts at the size of the process that forked this one.
PEAK = """
import atexit, sys
atexit.register(lambda: sys.stderr.write(next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))))
"""
LIMITED = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000)); "
COMMAND = "import sys; from megadeberta.cli import main; sys.exit(main())"


def test_a_write_the_system_refuses_is_one_line_and_exit_code_79(output: Path, model: Path) -> None:
    result = run_apart(LIMITED + COMMAND, "prep", SOTU, "-o", output, "--tokenizer", model, "-j", "1")
    assert result.returncode == 79
    assert result.stderr.count("\n") == 1
    assert result.stderr.startswith(f"error: cannot write {output}") and "File too large" in result.stderr
    assert left_in(output) == []


def test_a_line_of_300_megabytes_is_counted_and_memory_stays_small(tmp_path: Path, output: Path, model: Path) -> None:
    corpus = tmp_path / "a.txt"
    with corpus.open("wb") as file:
        file.write(b"first\n" * 20_000)  # more than is looked at to tell text from binary data
        file.seek(300 << 20)  # the gap costs no disk and reads as NUL bytes
        file.write(b"\nlast line\n\nnext\n")
    result = run_apart(PEAK + MAIN, corpus, "-o", output, "--tokenizer", model, "--max-bad-fraction", "1", "-j", "1")
    assert result.returncode == 0, result.stderr
    report = json.loads((output / "report.json").read_bytes())["corpus"]
    assert report["bad_lines"]["line_too_long"] == {
        "meaning": "line longer than --max-line-bytes",
        "count": 1,
        "first": "a.txt:20001 (byte 120000)",
    }
    # In KiB. An interpreter with numpy, SentencePiece and matplotlib takes about 100 MB; the line is 300 MB.
    peak = int(result.stderr.rpartition("VmHWM:")[2].split()[0])
    assert peak < 250 << 10


def test_importing_the_commands_loads_no_heavy_package(output: Path) -> None:
    code = "import sys; from megadeberta.data_prep import cli, fetch; print([m for m in HEAVY if m in sys.modules])"
    heavy = ("torch", "transformers", "deepspeed", "matplotlib", "sentencepiece")
    assert run_apart(f"HEAVY = {heavy!r}; {code}").stdout.strip() == "[]"
    code = (
        "import sys; from megadeberta.data_prep import prepare, verify; print([m for m in HEAVY if m in sys.modules])"
    )
    assert run_apart(f"HEAVY = {heavy[:4]!r}; {code}").stdout.strip() == "[]"
