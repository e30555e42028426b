"""Every environment that the repository describes holds the packages of the lock file."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
import yaml
from builders import REPOSITORY

from neuromf import environment

INSTALLS = (  # as `make install` does
    "python -m pip install --no-cache-dir --require-hashes -r requirements.lock",
    "python -m pip install --no-cache-dir --no-deps --no-build-isolation --editable .",
)


def test_the_conda_environment_holds_the_locked_packages() -> None:
    packages = environment.locked_packages(REPOSITORY / environment.LOCK, environment.PYTHON)
    written = (REPOSITORY / environment.CONDA).read_text()
    assert written == environment.conda_environment(packages), "run `make generated`"
    python, _, pip = yaml.safe_load(written)["dependencies"]
    assert python == f"python={environment.PYTHON}"
    assert set(pip["pip"]) == {f"{name}=={version}" for name, version in packages.items()}
    assert packages["torch"] and len(packages) > 100


@pytest.mark.parametrize("recipe", ["Dockerfile", "neuromf.def"])
def test_containers_install_the_lock_file_with_its_hashes(recipe: str) -> None:
    text = (REPOSITORY / "envs" / recipe).read_text()
    assert re.search(rf"^from:? python:{re.escape(environment.PYTHON)}-slim", text, re.MULTILINE | re.IGNORECASE)
    assert re.findall(r"python -m pip install .*", text) == list(INSTALLS)


def test_make_installs_the_same_way_and_python_is_the_projects() -> None:
    makefile = (REPOSITORY / "Makefile").read_text()
    for command in INSTALLS:
        assert command.removeprefix("python -m pip install --no-cache-dir ") in makefile


def test_the_pythons_are_those_of_the_project_and_of_continuous_integration() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    oldest, newest = environment.PYTHONS[0], environment.PYTHONS[-1]
    assert project["requires-python"] == f">={oldest},<3.{int(newest.removeprefix('3.')) + 1}"
    named = [one.rpartition(" ")[2] for one in project["classifiers"] if "Python ::" in one]
    workflow = yaml.safe_load((REPOSITORY / ".github/workflows/ci.yml").read_text())
    matrix = workflow["jobs"]["check-and-test"]["strategy"]["matrix"]
    assert tuple(named) == tuple(matrix["python"]) == environment.PYTHONS


@pytest.mark.parametrize("python", environment.PYTHONS)
def test_one_lock_serves_every_python(python: str) -> None:
    packages = environment.locked_packages(REPOSITORY / environment.LOCK, python)
    assert environment.needed_packages() <= packages.keys()
    assert packages["torch"] == "2.12.1" and packages["torchvision"] == "0.27.1"
    assert ("importlib-resources" in packages) == (python == "3.11")


def test_the_lock_has_hashes_and_no_address() -> None:
    text = (REPOSITORY / environment.LOCK).read_text()
    assert "://" not in text and "--index-url" not in text and "--find-links" not in text
    rows = re.split(r"^(?=\S)", text, flags=re.MULTILINE)[1:]
    assert len(rows) > 100 and all("--hash=sha256:" in row for row in rows)


def test_markers_say_which_python_a_row_is_for(tmp_path: Path) -> None:
    lock = tmp_path / "requirements.lock"
    lock.write_text(
        "old==1.0 ; python_full_version < '3.12' and sys_platform == 'linux' \\\n    --hash=sha256:00\n    # via x\n"
        "new_er==2.0 ; python_full_version >= '3.13'\nall==3.0 \\\n    --hash=sha256:00\n"
    )
    assert environment.locked_packages(lock, "3.11") == {"old": "1.0", "all": "3.0"}
    assert environment.locked_packages(lock, "3.12") == {"all": "3.0"}
    assert environment.locked_packages(lock, "3.13") == {"new-er": "2.0", "all": "3.0"}


def test_apptainer_takes_along_what_the_workflow_needs() -> None:
    text = (REPOSITORY / "envs" / "neuromf.def").read_text()
    files = re.findall(r"^ +(\S+) /opt/neuromf/(\S+)$", text, re.MULTILINE)
    assert all(here == there and (REPOSITORY / here).exists() for here, there in files)
    needed = {"Snakefile", "rules", "workflow_scripts", "profiles", "envs", "config", "src", "requirements.lock"}
    assert needed <= {here for here, _ in files}


def test_what_is_installed_is_what_is_locked() -> None:
    locked, installed = environment.locked_packages(REPOSITORY / environment.LOCK), environment.installed_packages()
    assert environment.needed_packages() <= locked.keys() & installed.keys()
    assert "pytest" not in environment.needed_packages()


def test_a_lock_without_packages_is_refused(tmp_path: Path) -> None:
    (tmp_path / "requirements.lock").write_text("# nothing\n")
    with pytest.raises(ValueError, match="locks no package"):
        environment.locked_packages(tmp_path / "requirements.lock")


def test_of_two_packages_of_one_name_the_one_that_is_imported_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shadow = tmp_path / "nibabel-1.0.dist-info"
    shadow.mkdir()
    (shadow / "METADATA").write_text("Metadata-Version: 2.1\nName: nibabel\nVersion: 1.0\n")
    (tmp_path / "broken-1.0.dist-info").mkdir()
    monkeypatch.syspath_prepend(str(tmp_path))
    assert environment.installed_packages()["nibabel"] == "1.0"
