"""The locked packages: what is installed is compared with them, and the rules' conda environment is made from them.

python -m neuromf.environment            # write envs/neuromf.yaml
python -m neuromf.environment --check    # exit code 1 when it does not fit requirements.lock
"""

from __future__ import annotations

import importlib.metadata
import re
import sys
from collections.abc import Mapping
from pathlib import Path

from packaging.requirements import Requirement

PYTHONS = ("3.11", "3.12", "3.13")
PYTHON = "3.11"  # of the conda environment and the containers
# A colon parts PYTHONPATH, Snakemake looks for wildcards in braces, and between double quotes, as pip puts its commands'
# Python, shells read the rest.
PATH_BREAKERS = ':{}"$`\\'
LOCK, CONDA = Path("requirements.lock"), Path("envs/neuromf.yaml")
_PIN = re.compile(r"^[A-Za-z0-9._-]+==[^\\\n]+", re.MULTILINE)


def locked_packages(lock: Path, python: str | None = None) -> dict[str, str]:
    """Return name -> version of every package that a lock file has for a Python, as 3.12; without one, for this one.

    Raises:
        ValueError: it locks nothing.
    """
    where = {"python_version": python, "python_full_version": f"{python}.0"} if python else {}
    rows = [Requirement(row) for row in _PIN.findall(lock.read_text(encoding="utf-8"))]
    here = [row for row in rows if row.marker is None or row.marker.evaluate(where)]
    packages = {_normal(row.name): str(row.specifier).removeprefix("==") for row in here}
    if not packages:
        raise ValueError(f"{lock} locks no package; restore it, or write it again with `make lock`")
    return packages


def installed_packages() -> dict[str, str]:
    """Return name -> version of every package that this Python imports: the first on its path of those of one name."""
    found = [one for one in importlib.metadata.distributions() if one.name]  # the rest of a broken install has no name
    return {_normal(one.name): one.version for one in reversed(found)}


def path_refusal(checkout: Path) -> str:
    """Return why NeuroMF cannot run from a checkout in this folder, or ""; a study's own folder may have any name."""
    if found := next((character for character in PATH_BREAKERS if character in str(checkout)), ""):
        return (
            f"{checkout}: NeuroMF does not run from a folder with {found} in its path; move the checkout to another one"
        )
    return ""


def needed_packages() -> set[str]:
    """Return the packages that NeuroMF itself names and needs to run."""
    wanted = importlib.metadata.requires("neuromf") or []
    return {_normal(re.split(r"[^A-Za-z0-9._-]", one, maxsplit=1)[0]) for one in wanted if "extra ==" not in one}


def conda_environment(packages: Mapping[str, str]) -> str:
    """Return the content of ``envs/neuromf.yaml``: Python and the locked packages.

    The pins are written out, since Snakemake copies the file away from the lock. NeuroMF itself comes from the checkout
    whose workflow runs (workflow_scripts/job.py).
    """
    pins = "".join(f"      - {name}=={version}\n" for name, version in sorted(packages.items()))
    return (
        "# For `snakemake --sdm conda`: Python and the packages of requirements.lock. Written by `make generated`.\n"
        "name: neuromf\n"
        "channels: [conda-forge]\n"
        "dependencies:\n"
        f"  - python={PYTHON}\n"
        "  - pip\n"
        "  - pip:\n"
        f"{pins}"
    )


def _normal(name: str) -> str:
    """Return a package's name as indices compare it (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def main() -> None:
    wanted = conda_environment(locked_packages(LOCK, PYTHON))
    if "--check" not in sys.argv:
        CONDA.write_text(wanted, encoding="utf-8")
    elif CONDA.read_text(encoding="utf-8") != wanted:
        sys.exit(f"{CONDA} does not fit {LOCK}: run `make generated`")


if __name__ == "__main__":
    main()
