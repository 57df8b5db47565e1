"""What `pip install` gives: one top-level name with code, recipes and examples, and metadata that keep their word."""

import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from itertools import chain
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
# The folders that the checkout has at its top and the package inside itself.
LINKS = {"launcher": "launcher", "data_prep": "data_prep", "ds_configs": "ds_configs", "docs/examples": "examples"}
BUILD_SDIST = "import sys; from setuptools import build_meta; build_meta.build_sdist(sys.argv[1])"


def _build(source: Path, target: Path) -> Path:
    """The wheel that pip builds of a folder or an sdist."""
    words = ["-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", target, source]
    subprocess.run([sys.executable, *words], check=True, capture_output=True, text=True)
    (wheel,) = target.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy: building leaves its traces in the folder it builds."""
    folder = tmp_path_factory.mktemp("checkout")
    for name in ("megadeberta", *LINKS):
        shutil.copytree(ROOT / name, folder / name, symlinks=True)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder / name)
    return folder


@pytest.fixture(scope="module")
def wheel(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _build(checkout, tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def sdist(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("sdist")
    subprocess.run([sys.executable, "-c", BUILD_SDIST, target], cwd=checkout, check=True, capture_output=True)
    (archive,) = target.glob("*.tar.gz")
    return archive


def _content(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return {name for name in archive.namelist() if ".dist-info/" not in name}


def test_wheel_has_one_top_level_name(wheel: Path) -> None:
    assert {name.split("/")[0] for name in _content(wheel)} == {"megadeberta"}


def test_wheel_has_every_file_of_the_package_and_of_the_folders_linked_into_it(wheel: Path) -> None:
    folders = {ROOT / "megadeberta": "megadeberta"} | {ROOT / a: f"megadeberta/{b}" for a, b in LINKS.items()}
    expected = {
        f"{inside}/{path.relative_to(folder).as_posix()}"
        for folder, inside in folders.items()
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert _content(wheel) == expected
    assert "megadeberta/ds_configs/clusters/deberta-large-1x8.json" in expected
    assert "megadeberta/py.typed" in expected


def test_every_linked_folder_is_a_relative_link() -> None:
    for outside, inside in LINKS.items():
        link = ROOT / "megadeberta" / inside
        assert link.readlink() == Path("..") / outside


def test_sdist_has_one_top_level_name_without_links_and_builds_the_same_wheel(
    sdist: Path, wheel: Path, tmp_path: Path
) -> None:
    with tarfile.open(sdist) as archive:
        members = [(member, member.name.split("/")) for member in archive.getmembers()]
    assert {parts[1] for member, parts in members if member.isdir() and len(parts) == 2} == {
        "megadeberta",
        "megadeberta.egg-info",
    }
    assert not any(member.issym() or member.islnk() for member, _ in members)
    assert _content(_build(sdist, tmp_path)) == _content(wheel)


def _project() -> tuple[list[Requirement], dict[str, list[Requirement]]]:
    """The dependencies, and those of every extra."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = {name: list(map(Requirement, lines)) for name, lines in project["optional-dependencies"].items()}
    return list(map(Requirement, project["dependencies"])), extras


def test_extras_that_texts_and_messages_name_are_those_that_exist() -> None:
    files = [
        ROOT / "README.md",
        ROOT / "Makefile",
        *(ROOT / "docs").glob("*.md"),
        *(ROOT / "megadeberta").rglob("*.py"),
    ]
    named = {
        extra
        for path in files
        for extras in re.findall(r"(?:megadeberta|'\.)\[([a-z,]+)\]'", path.read_text(encoding="utf-8"))
        for extra in extras.split(",")
    }
    assert named == set(_project()[1])


def test_readme_gives_the_range_of_torch() -> None:
    (torch,) = (requirement for requirement in _project()[0] if requirement.name == "torch")
    lowest, highest = sorted(str(torch.specifier).split(","), reverse=True)
    assert f"torch{lowest},{highest}" in (ROOT / "README.md").read_text(encoding="utf-8")


def test_constraints_pin_every_dependency_inside_its_range() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = dict(line.replace("_", "-").split("==") for line in lines if line and not line.startswith("#"))
    dependencies, extras = _project()
    for requirement in chain(dependencies, *extras.values()):
        if requirement.name not in ("megadeberta", "triton"):  # a CUDA build of torch pins Triton itself
            assert pins[requirement.name] in requirement.specifier, requirement


def test_running_needs_no_triton() -> None:
    dependencies, extras = _project()
    assert "triton" not in {requirement.name for requirement in dependencies}
    assert [name for name, found in extras.items() if "triton" in {one.name for one in found}] == ["gpu"]


def test_the_dockerfile_installs_as_the_makefile_does() -> None:
    """docker itself is not everywhere: what it would run is compared."""
    image, make = (ROOT / "Dockerfile").read_text(encoding="utf-8"), (ROOT / "Makefile").read_text(encoding="utf-8")
    of_image = re.findall(r"pip install --no-cache-dir -c constraints\.txt (.+?)(?: \\)?$", image, re.MULTILINE)
    of_make = re.findall(r"^\t\$\(PIP\) (.+)$", make.split("$(TEST_STAMP)")[0], re.MULTILINE)
    assert [re.sub(r"'?\.\[.+?\]'?$", ".", line) for line in of_image] == [
        line.replace("--editable ", "") for line in of_make
    ]
    assert "python:3.12-slim" in image and "Python :: 3.12" in (ROOT / "pyproject.toml").read_text()
    assert 'ENTRYPOINT ["megadeberta"]' in image
