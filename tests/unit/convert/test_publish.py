"""Exports go to the hub, each kept step as a revision; without --push the command for it is printed."""

from pathlib import Path

import pytest
from huggingface_hub import HfApi
from typer.testing import CliRunner

from megadeberta.cli import app
from megadeberta.errors import CheckpointError, ConfigError, StorageError
from tests.unit.convert.small_models import small_config, small_model, write_checkpoint, write_weights_folder

RUNNER = CliRunner(env={"COLUMNS": "80"})


class FakeHub:
    """What the client is asked to do. The hub itself is not to be had in a test."""

    def __init__(self) -> None:
        self.calls: list[tuple[object, ...]] = []
        self.failure: Exception | None = None

    def create_repo(self, repo: str, *, private: bool | None, exist_ok: bool) -> str:
        self.calls.append(("create", repo, private, exist_ok))
        return f"https://hub/{repo}"

    def create_branch(self, repo: str, *, branch: str, exist_ok: bool) -> None:
        self.calls.append(("branch", repo, branch, exist_ok))

    def upload_folder(self, *, repo_id: str, folder_path: Path, revision: str, commit_message: str) -> None:
        if self.failure is not None:
            raise self.failure
        files = sorted(path.name for path in folder_path.iterdir())
        assert "model.safetensors" in files and "README.md" in files and commit_message
        self.calls.append(("upload", repo_id, revision, folder_path.name))


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> FakeHub:
    fake = FakeHub()
    for name in ("create_repo", "create_branch", "upload_folder"):
        call = getattr(fake, name)
        monkeypatch.setattr(HfApi, name, lambda _, *arguments, _call=call, **named: _call(*arguments, **named))
    monkeypatch.setattr("huggingface_hub.get_token", lambda: "hf_secret")
    return fake


@pytest.fixture
def run(tmp_path: Path, spm: Path) -> Path:
    config = small_config()
    for step in (5, 10):
        write_checkpoint(tmp_path / "run", small_model(config, seed=step), config, spm, step=step)
    return tmp_path / "run"


def _export(*arguments: object) -> str:
    result = RUNNER.invoke(app, ["convert", "export", *map(str, arguments)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_without_push_the_command_is_printed(run: Path, tmp_path: Path, hub: FakeHub) -> None:
    shown = _export(run, tmp_path / "out")
    assert f"  hf upload OWNER/MODEL {tmp_path / 'out'}\n" in shown and "--revision" not in shown
    assert hub.calls == []


def test_an_export_is_uploaded_to_main(run: Path, tmp_path: Path, hub: FakeHub) -> None:
    shown = _export(run, tmp_path / "out", "--push", "me/model", "--private")
    assert hub.calls == [("create", "me/model", True, True), ("upload", "me/model", "main", "out")]
    assert "https://hub/me/model is up to date: main" in shown


def test_every_kept_step_is_a_revision_and_the_last_is_main(run: Path, tmp_path: Path, hub: FakeHub) -> None:
    shown = _export(run, tmp_path / "out", "--all-steps", "--push", "me/model")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["step-10", "step-5"]
    assert hub.calls == [
        ("create", "me/model", None, True),
        ("branch", "me/model", "step-5", True),
        ("upload", "me/model", "step-5", "step-5"),
        ("branch", "me/model", "step-10", True),
        ("upload", "me/model", "step-10", "step-10"),
        ("upload", "me/model", "main", "step-10"),
    ]
    assert "is up to date: step-5, step-10, main" in shown
    cards = [(tmp_path / "out" / f"step-{step}" / "README.md").read_text() for step in (5, 10)]
    assert "| optimizer steps | 5 of 1,000 |" in cards[0] and "| optimizer steps | 10 of 1,000 |" in cards[1]
    shown = _export(run, tmp_path / "out", "--all-steps", "--overwrite")
    assert f"  hf upload OWNER/MODEL {tmp_path / 'out' / 'step-5'} --revision step-5\n" in shown
    assert f"  hf upload OWNER/MODEL {tmp_path / 'out' / 'step-10'}\n" in shown


def test_steps_do_not_go_into_an_export_that_would_be_published_with_them(run: Path, tmp_path: Path) -> None:
    _export(run, tmp_path / "out")
    before = sorted(path.name for path in (tmp_path / "out").iterdir())
    for more in ((), ("--overwrite",)):
        with pytest.raises(ConfigError, match=r"out: holds an export, and --all-steps writes one folder per step"):
            _export(run, tmp_path / "out", "--all-steps", *more)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == before


def test_a_failed_upload_leaves_the_export_and_says_how_to_go_on(run: Path, tmp_path: Path, hub: FakeHub) -> None:
    hub.failure = ConnectionError("no route\nto host")
    expected = (
        r"the export is written, but me/model was not pushed \(no route to host\); later: `hf upload me/model .*out`"
    )
    with pytest.raises(StorageError, match=expected):
        _export(run, tmp_path / "out", "--push", "me/model")
    assert (tmp_path / "out" / "model.safetensors").is_file()


def test_where_to_is_checked_before_the_export(
    run: Path, tmp_path: Path, spm: Path, hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("model", "a/b/c", "-/x", "https://hub/me/model"):
        with pytest.raises(ConfigError, match=r"is no repository of the hub; write OWNER/MODEL"):
            _export(run, tmp_path / "out", "--push", name)
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    with pytest.raises(ConfigError, match=r"nobody is logged in to the hub; run `hf auth login` or set HF_TOKEN"):
        _export(run, tmp_path / "out", "--push", "me/model")
    config = small_config()
    imported = write_weights_folder(tmp_path / "imported", small_model(config), config, spm)
    with pytest.raises(CheckpointError, match=r"holds no checkpoints of a run; --all-steps needs"):
        _export(imported, tmp_path / "out", "--all-steps")
    assert not (tmp_path / "out").exists() and hub.calls == []
