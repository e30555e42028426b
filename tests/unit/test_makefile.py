"""`make install` takes a Python that works, says what it needs where there is none, and breaks no .venv that is there."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from builders import REPOSITORY

from neuromf import environment

# A Python of which only what `make` asks of it is there: is it fit, its version, to make a virtual environment, to install
FAKE = """#!/bin/sh
case "$*" in
    *ensurepip*) exit {unfit} ;;
    *print*) echo {version} ;;
    "-m venv .venv") mkdir -p .venv/bin; [ -e .venv/bin/python ] || cp "$0" .venv/bin/python ;;
esac
"""
SHIM = "#!/bin/sh\necho 'pyenv: command not found' >&2\nexit 127\n"  # pyenv's, of a version that is not chosen
MAKE = shutil.which("make") or ""

pytestmark = pytest.mark.skipif(not MAKE, reason="no make here")


def alone() -> dict[str, str]:
    """The environment without what a `make` that runs the tests says to the ones below it."""
    return {name: value for name, value in os.environ.items() if name not in ("PYTHON", "MAKEFLAGS", "MAKELEVEL")}


class Machine:
    """A checkout, and a PATH with the Pythons that a test puts there."""

    def __init__(self, folder: Path) -> None:
        self.checkout, self.bin = folder / "check out", folder / "bin"
        self.bin.mkdir()
        self.checkout.mkdir()
        for name in ("mkdir", "cp", "touch", "rm"):
            (self.bin / name).symlink_to(shutil.which(name) or "")
        for name in ("Makefile", "requirements.lock", "pyproject.toml"):
            shutil.copyfile(REPOSITORY / name, self.checkout / name)

    def python(self, name: str, version: str = "", *, fit: bool = True, text: str = FAKE) -> Path:
        file = self.bin / name
        file.write_text(text.format(version=version or name.removeprefix("python"), unfit=int(not fit)))
        file.chmod(0o755)
        return file

    def make(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [MAKE, "install", *arguments],
            cwd=self.checkout,
            env=alone() | {"PATH": str(self.bin)},
            capture_output=True,
            text=True,
            check=False,
        )

    @property
    def installed(self) -> str:
        """Version of the Python in .venv."""
        return subprocess.run(
            [self.checkout / ".venv/bin/python", "print"], capture_output=True, text=True, check=True
        ).stdout.strip()


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_the_newest_python_is_taken(machine: Machine) -> None:
    for name in ("python3.11", "python3.13", "python3.12", "python3.14"):
        machine.python(name)
    done = machine.make()
    assert done.returncode == 0, done.stderr
    assert machine.installed == "3.13"


def test_a_shim_that_does_not_run_and_a_python_without_venv_are_passed_over(machine: Machine) -> None:
    machine.python("python3.13", text=SHIM)
    machine.python("python3.12", fit=False)
    machine.python("python3.11")
    done = machine.make()
    assert (done.returncode, done.stderr) == (0, "")
    assert machine.installed == "3.11"


def test_a_python_of_no_version_in_its_name_will_do(machine: Machine) -> None:
    machine.python("python3", "3.12")
    assert machine.make().returncode == 0
    assert machine.installed == "3.12"


def test_another_python_can_be_named(machine: Machine) -> None:
    machine.python("python3.13")
    mine = machine.python("my python", "3.12")
    assert machine.make(f"PYTHON={mine}").returncode == 0
    assert machine.installed == "3.12"


@pytest.mark.parametrize("arguments", [(), ("PYTHON=python3.9",), ("PYTHON=/nowhere/python3.12",)])
def test_without_a_python_one_line_says_what_to_do(machine: Machine, arguments: tuple[str, ...]) -> None:
    machine.python("python3.13", text=SHIM)
    machine.python("python3.9", fit=False)
    done = machine.make(*arguments)
    said, *of_make = done.stderr.splitlines()
    assert done.returncode != 0
    assert len(of_make) == 1 and of_make[0].startswith("make: ***")
    for part in ("Python 3.11, 3.12 or 3.13", "apt-get install python3-venv", "dnf install python3.13", "PYTHON="):
        assert part in said
    assert not arguments or arguments[0].removeprefix("PYTHON=") in said


def test_a_venv_keeps_its_python(machine: Machine) -> None:
    machine.python("python3.11")
    assert machine.make().returncode == 0
    machine.python("python3.13")
    (machine.checkout / ".venv/.installed").unlink()
    assert machine.make().returncode == 0
    assert machine.installed == "3.11"


def test_a_venv_of_another_python_is_left_alone_and_said(machine: Machine) -> None:
    machine.python("python3.11")
    assert machine.make().returncode == 0
    machine.python("python3.13")
    (machine.checkout / ".venv/.installed").unlink()
    done = machine.make("PYTHON=python3.13")
    assert done.returncode != 0
    assert ".venv is of Python 3.11, python3.13 is 3.13: `make clean` first" in done.stderr
    assert machine.installed == "3.11"


def test_a_venv_whose_python_is_gone_is_said(machine: Machine) -> None:
    machine.python("python3.12")
    (machine.checkout / ".venv/bin").mkdir(parents=True)
    (machine.checkout / ".venv/bin/python").symlink_to("/nowhere/python3.11")
    done = machine.make()
    assert done.returncode != 0
    assert ".venv is of Python that is gone" in done.stderr and "`make clean` first" in done.stderr


@pytest.mark.parametrize("character", environment.PATH_BREAKERS)
def test_a_folder_that_shells_take_apart_is_refused_at_once(tmp_path: Path, character: str) -> None:
    folder = tmp_path / f"my{character}study"
    folder.mkdir()
    shutil.copyfile(REPOSITORY / "Makefile", folder / "Makefile")
    done = subprocess.run([MAKE, "install"], cwd=folder, env=alone(), capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert len(done.stderr.splitlines()) == 1 and "does not run from a folder" in done.stderr
    assert str(folder) in environment.path_refusal(folder)


@pytest.mark.parametrize("name", ["a b", "it's", "ümläut", "100%", "star*[a]", "amp&(x),;"])
def test_other_folders_are_not(name: str) -> None:
    assert environment.path_refusal(Path("/home") / name) == ""
