"""Damage of every kind is found before anything is loaded: an error names the file, or the previous one is used."""

import json
import os
import random
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from megadeberta.checkpoint import ResumePoint, find_resumable, verify_checkpoint
from megadeberta.checkpoint.collectives import SingleProcess
from megadeberta.checkpoint.durable import write_new_file
from megadeberta.checkpoint.folder import checkpoint_path
from megadeberta.checkpoint.manifest import FORMAT_VERSION, encode_manifest, read_manifest
from megadeberta.checkpoint.verify import verify_together
from megadeberta.errors import CheckpointError
from tests.unit.checkpoint.rank_threads import on_ranks, run_record, save


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Three checkpoints, 100, 200 and 300, saved by two ranks."""
    root = tmp_path / "checkpoints"
    save(root, 100, 200, 300, keep_last=3)
    return root


def _resume(root: Path, **options) -> ResumePoint | CheckpointError | None:
    """What both ranks come to; they must agree."""
    first, second = on_ranks(lambda ranks: find_resumable(root, collectives=ranks, run=run_record(), **options))
    assert str(first) == str(second)
    return first


def _flip(path: Path, bit: int) -> None:
    with path.open("r+b") as file:
        file.seek(bit // 8)
        (byte,) = file.read(1)
        file.seek(bit // 8)
        file.write(bytes([byte ^ 1 << bit % 8]))


def test_a_hundred_single_bit_flips_are_all_found(root: Path) -> None:
    random.seed(7)
    target = root / "step-300"
    names = sorted(path.name for path in target.iterdir())
    assert len(names) == 6  # the manifest is one of them
    for index in range(100):
        path = target / names[index % len(names)]
        whole = path.read_bytes()
        _flip(path, random.randrange(len(whole) * 8))
        with pytest.raises(CheckpointError, match=rf"{names[index % len(names)]}: "):
            verify_checkpoint(target)
        path.write_bytes(whole)
    verify_checkpoint(target)


def test_a_flipped_bit_in_any_byte_of_the_manifest_is_found(root: Path) -> None:
    path = root / "step-300" / "manifest.json"
    whole = path.read_bytes()
    for bit in range(0, len(whole) * 8, 7):  # in every byte, white space too
        _flip(path, bit)
        with pytest.raises(CheckpointError, match=r"manifest\.json: "):
            read_manifest(path.parent)
        _flip(path, bit)
    assert path.read_bytes() == whole


def test_a_flipped_bit_in_the_pointer_leads_to_a_sound_checkpoint_or_an_error(root: Path) -> None:
    path = root / "latest"
    whole = path.read_bytes()
    for bit in range(len(whole) * 8):
        _flip(path, bit)
        point = _resume(root)
        assert isinstance(point, ResumePoint)
        assert point.step in (100, 200, 300)
        path.write_bytes(whole)


def _swap(root: Path) -> None:
    first, second = root / "step-300/own-0.txt", root / "step-300/own-1.txt"
    content = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(content)


def _swap_parts(path: Path, first: int, second: int) -> None:
    """Of a file, two parts of equal length that touch."""
    content, size = path.read_bytes(), second - first
    parts = content[second : second + size] + content[first:second]
    path.write_bytes(content[:first] + parts + content[second + size :])


def _edit_manifest(root: Path) -> None:
    path = root / "step-300/manifest.json"
    path.write_text(path.read_text().replace('"step": 300', '"step": 301'))


def _zero(path: Path, keep: int) -> None:
    with path.open("r+b") as file:
        file.truncate(keep)


# damage, the step that is used, what the log says about it
DAMAGES: dict[str, tuple[Callable[[Path], object], int, str]] = {
    "pointer empty": (lambda root: _zero(root / "latest", 0), 300, r"latest: is empty, expected the name"),
    "pointer missing": (lambda root: (root / "latest").unlink(), 300, r"latest: is missing"),
    "pointer dangling": (lambda root: (root / "latest").write_text("step-250\n"), 300, r"step-250: no such checkpoint"),
    "pointer garbage": (lambda root: (root / "latest").write_bytes(b"\xff\x00\xfe"), 300, r"latest: holds .*expected"),
    "pointer huge": (lambda root: (root / "latest").write_bytes(b"a" * 10**6), 300, r"latest: .*larger than 256 bytes"),
    "pointer leaves the folder": (lambda root: (root / "latest").write_text("../evil\n"), 300, r"holds '\.\./evil'"),
    "pointer is the parent": (lambda root: (root / "latest").write_text("..\n"), 300, r"'\.\.' is not of the form"),
    "pointer names another folder": (
        lambda root: ((root / "other").mkdir(), (root / "latest").write_text("other")),
        300,
        r"other: is not named like a checkpoint",
    ),
    "pointer is a link": (
        lambda root: ((root / "latest").unlink(), (root / "latest").symlink_to(root / "step-100/manifest.json")),
        300,
        r"latest: cannot be read \(Too many levels of symbolic links\)",
    ),
    "pointed folder is a link": (
        lambda root: (
            (root / "step-300").rename(root.parent / "outside"),
            (root / "step-300").symlink_to(root.parent / "outside"),
        ),
        200,
        r"step-300: is a symbolic link",
    ),
    "tensors truncated": (
        lambda root: _zero(root / "step-300/node-0.safetensors", 9000),
        200,
        r"node-0\.safetensors: 9000 bytes, the manifest says 24576 \(written by ranks 0 to 1 at step 300\)",
    ),
    "tensors too long": (
        lambda root: (root / "step-300/node-0.safetensors").open("ab").write(b"\0"),
        200,
        r"node-0\.safetensors: 24577 bytes, the manifest says 24576",
    ),
    "tensors swapped between ranks": (
        lambda root: _swap_parts(root / "step-300/node-0.safetensors", 8192, 16384),
        200,
        r"node-0\.safetensors: sha256 of bytes (8192 to 16384|16384 to 24576) [0-9a-f]{12}…, the manifest says",
    ),
    "tensors of another step": (
        lambda root: shutil.copy(root / "step-200/node-0.safetensors", root / "step-300/node-0.safetensors"),
        200,
        r"node-0\.safetensors: sha256 of bytes \d+ to \d+ .* \(written by rank [01] at step 300\)",
    ),
    "file missing": (
        lambda root: (root / "step-300/own-1.txt").unlink(),
        200,
        r"step-300/own-1\.txt: is missing, the manifest lists it; the checkpoint is damaged; use an older one",
    ),
    "file truncated": (
        lambda root: _zero(root / "step-300/own-1.txt", 100),
        200,
        r"own-1\.txt: 100 bytes, the manifest says 4\d\d\d \(written by rank 1 at step 300\)",
    ),
    "file empty": (lambda root: _zero(root / "step-300/spm.model", 0), 200, r"spm\.model: 0 bytes, the manifest"),
    "files swapped between ranks": (_swap, 200, r"own-[01]\.txt: sha256 [0-9a-f]{12}…, the manifest says"),
    "file of another step": (
        lambda root: shutil.copy(root / "step-200/spm.model", root / "step-300/spm.model"),
        200,
        r"spm\.model: sha256 .* \(written by rank 0 at step 300\)",
    ),
    "file is a link": (
        lambda root: (
            (root / "step-300/spm.model").unlink(),
            (root / "step-300/spm.model").symlink_to(root / "step-200/spm.model"),
        ),
        200,
        r"spm\.model: ",
    ),
    "file too many": (lambda root: (root / "step-300/extra.txt").touch(), 200, r"extra\.txt: is not in the manifest"),
    "manifest missing": (
        lambda root: (root / "step-300/manifest.json").unlink(),
        200,
        r"step-300/manifest\.json: cannot be read \(No such file or directory\); the folder is not a whole checkpoint",
    ),
    "manifest edited": (
        _edit_manifest,
        200,
        r"manifest\.json: sha256 of its content is .*, it says .*: damaged",
    ),
    "manifest of another step": (
        lambda root: shutil.copy(root / "step-200/manifest.json", root / "step-300/manifest.json"),
        200,
        r"step-300/.*: sha256 .* the manifest says",
    ),
    "manifest garbage": (
        lambda root: (root / "step-300/manifest.json").write_bytes(b"\x80\x04."),
        200,
        r"manifest\.json: not a manifest",
    ),
    "manifest deep": (
        lambda root: (root / "step-300/manifest.json").write_text("[" * 100_000),
        200,
        r"manifest\.json: not a manifest",
    ),
    "folder empty": (
        lambda root: (shutil.rmtree(root / "step-300"), (root / "step-300").mkdir()),
        200,
        r"step-300/manifest\.json: cannot be read",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_leads_to_the_newest_sound_checkpoint_and_is_named(
    root: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    spoil, step, message = DAMAGES[damage]
    spoil(root)
    point = _resume(root)
    assert isinstance(point, ResumePoint)
    assert point.step == step
    warnings = [record.getMessage() for record in caplog.records]
    assert any(re.search(message, text) for text in warnings), warnings
    assert warnings[-1] == f"falling back to step-{step}, the newest sound checkpoint (verified)"


@pytest.mark.parametrize("damage", [name for name in DAMAGES if not name.startswith("pointer")])
def test_damage_to_the_only_checkpoint_is_an_error_and_never_a_fresh_start(root: Path, damage: str) -> None:
    DAMAGES[damage][0](root)
    for step in (100, 200):
        shutil.rmtree(root / f"step-{step}")
    error = _resume(root)
    assert isinstance(error, CheckpointError)
    assert "no sound checkpoint to resume from: " in str(error)
    assert "to start from the beginning, delete" in str(error)


def test_nothing_there_is_a_fresh_start_unless_resuming_is_asked_for(tmp_path: Path) -> None:
    assert _resume(tmp_path / "none") is None
    (tmp_path / ".tmp-step-5").mkdir()
    assert _resume(tmp_path) is None
    error = _resume(tmp_path, required=True)
    assert isinstance(error, CheckpointError)
    assert f"{tmp_path}: there is no checkpoint to resume from; start without resuming" in str(error)


def test_a_pointer_to_nothing_is_not_a_fresh_start(tmp_path: Path) -> None:
    (tmp_path / "latest").write_text("step-5\n")
    error = _resume(tmp_path)
    assert isinstance(error, CheckpointError)
    assert "the pointer is not usable" in str(error)
    assert "step-5: no such checkpoint folder" in str(error)


def test_a_name_that_is_no_checkpoint_of_the_folder_is_refused(root: Path) -> None:
    assert checkpoint_path(root, "step-100") == root / "step-100"
    with pytest.raises(CheckpointError, match="step-7: no such checkpoint folder"):
        checkpoint_path(root, "step-7")
    with pytest.raises(CheckpointError, match=r"'\.\./step-100' is not of the form step-N"):
        checkpoint_path(root, "../step-100")


def test_a_sound_checkpoint_newer_than_the_pointer_is_mentioned(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    (root / "latest").write_text("step-200\n")
    point = _resume(root)
    assert isinstance(point, ResumePoint)
    assert point.step == 200
    assert "latest names step-200; newer folders are left alone: step-300" in caplog.text


def test_another_run_is_refused_with_the_fields_that_differ(root: Path) -> None:
    def resume(collectives):
        run = run_record(data="wikitext", seed="3")
        return find_resumable(root, collectives=collectives, run=run)

    for error in on_ranks(resume):
        assert isinstance(error, CheckpointError)
        assert "checkpoint step-300 is of another run: data is 'wikitext' here and 'none' there; " in str(error)
        assert str(error).endswith("there. Change the recipe back, or choose another training.output_dir")


def test_a_change_that_a_new_run_may_make_is_refused_with_the_setting_for_it(root: Path) -> None:
    last = root / "step-300"
    for fingerprint, way_out in (
        ({"objective.mask_rate": "0.3"}, "Change the recipe back, or choose another"),
        ({"data.masks": "2", "data.train": "a"}, "Change the recipe back, or choose another"),
        ({"data.masks": "2"}, "This megadeberta draws other masks than the one that began the run; choose another"),
    ):
        with pytest.raises(CheckpointError) as raised:
            find_resumable(root, collectives=SingleProcess(), run=run_record(**fingerprint))
        assert str(raised.value).endswith(
            f"there. {way_out} training.output_dir and go on from this checkpoint there, with "
            f"training.continue_from={last}"
        )


def test_another_layout_goes_on_and_rank_0_says_so_once(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    for point in on_ranks(lambda ranks: find_resumable(root, collectives=ranks, run=run_record(3)), 3):
        assert point.step == 300
    assert [text for text in caplog.messages if "saved by" in text] == [
        "checkpoint step-300 was saved by 2 ranks (tensor 1 x pipeline 1 x data 2), ZeRO stage 1, fp32; "
        "going on with 3 ranks (tensor 1 x pipeline 1 x data 3), ZeRO stage 1, fp32"
    ]


def test_a_rank_that_sees_another_manifest_stops_all_ranks(root: Path) -> None:
    stale = root.parent / "stale"
    shutil.copytree(root, stale)
    manifest = read_manifest(root / "step-300")
    (stale / "step-300/manifest.json").unlink()
    write_new_file(stale / "step-300/manifest.json", encode_manifest(manifest.model_copy(update={"created": "then"})))

    def resume(collectives):
        own = stale if collectives.rank == 1 else root
        return verify_together(own, "step-300", collectives)

    for error in on_ranks(resume):
        assert isinstance(error, CheckpointError)
        assert "rank 1 reads another manifest than rank 0; the output folder must be one that all nodes" in str(error)


def test_a_rank_that_does_not_see_a_file_stops_all_ranks(root: Path) -> None:
    blind = root.parent / "blind"
    shutil.copytree(root, blind)
    (blind / "step-300/own-0.txt").unlink()

    def resume(collectives):
        own = blind if collectives.rank == 1 else root
        return verify_together(own, "step-300", collectives)

    for error in on_ranks(resume):
        assert (
            "own-0.txt: is missing, the manifest lists it; the checkpoint is damaged; use an older one (seen by"
            in str(error)
        )


def test_a_manifest_of_another_format_says_so(root: Path) -> None:
    folder = root / "step-300"
    for version in (FORMAT_VERSION + 1, FORMAT_VERSION - 1):
        other = read_manifest(root / "step-200").model_copy(update={"format_version": version})
        (folder / "manifest.json").write_bytes(encode_manifest(other))
        message = rf"format version {version}, this megadeberta reads version {FORMAT_VERSION}; use the megadeberta"
        with pytest.raises(CheckpointError, match=message):
            read_manifest(folder)


def test_a_manifest_that_lists_a_path_is_refused(root: Path) -> None:
    folder = root / "step-300"
    manifest = read_manifest(folder)
    files = {"../../precious": next(iter(manifest.files.values()))}
    (folder / "manifest.json").write_bytes(encode_manifest(manifest.model_copy(update={"files": files})))
    with pytest.raises(CheckpointError, match=r"lists '\.\./\.\./precious', which is no plain file name"):
        verify_checkpoint(folder)


def test_a_manifest_with_a_wrong_field_names_it(root: Path) -> None:
    folder = root / "step-300"
    manifest = read_manifest(folder)
    (folder / "manifest.json").write_bytes(encode_manifest(manifest.model_copy(update={"step": -4})))
    with pytest.raises(CheckpointError, match=r"manifest\.json: step: Input should be greater than or equal to 0"):
        read_manifest(folder)


def test_a_device_file_in_place_of_a_file_does_not_hang(root: Path) -> None:
    path = root / "step-300/spm.model"
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(CheckpointError, match=r"spm\.model: 0 bytes, the manifest says"):
        verify_checkpoint(path.parent)
    (root / "latest").unlink()
    os.mkfifo(root / "latest")
    point = _resume(root)
    assert isinstance(point, ResumePoint)
    assert point.step == 200


def test_the_manifest_is_plain_sorted_json(root: Path) -> None:
    content = json.loads((root / "step-300/manifest.json").read_text())
    assert list(content) == ["created", "files", "format_version", "manifest_sha256", "run", "step"]
    assert content["run"]["config"]["name"] == "größe"


def test_a_rejected_checkpoint_is_passed_over_with_its_reason(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    _flip(root / "step-300" / "spm.model", 5)
    point = _resume(root, rejected={"step-200": "step-200: holds a NaN"})
    assert isinstance(point, ResumePoint) and point.folder.name == "step-100"
    assert point.damaged == {"step-200", "step-300"}
    assert "step-200: holds a NaN" in caplog.text
    every = {f"step-{step}": f"step-{step}: holds a NaN" for step in (100, 200, 300)}
    assert "no sound checkpoint to resume from" in str(_resume(root, rejected=every))


def test_a_hidden_file_of_a_file_system_discards_no_checkpoint(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    (root / "step-300" / ".nfs00000001").write_bytes(b"still open somewhere")
    point = _resume(root)
    assert isinstance(point, ResumePoint) and point.step == 300
    assert ".nfs00000001: is not in the manifest, and left alone" in caplog.text
