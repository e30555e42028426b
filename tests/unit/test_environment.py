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
    packages = environment.locked_packages(REPOSITORY / environment.LOCK)
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
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    assert project["requires-python"].startswith(f">={environment.PYTHON},")


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
