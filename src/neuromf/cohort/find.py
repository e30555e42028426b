"""Find the tables of cohorts and releases by their names, or say what is there and what makes them."""

from __future__ import annotations

from pathlib import Path

from neuromf.names import check_name, nearest
from neuromf.tables import Cohort, ReleaseRow, TableError, read_cohort, read_release

COHORTS = Path("config/cohorts")
RELEASES = Path("config/releases")


def find_cohort(name: str, cohorts: Path = COHORTS) -> Cohort:
    """Read the cohort ``<cohorts>/<name>.tsv``.

    Raises:
        TableError: there is none: with the nearest name and the command that makes it; or as `read_cohort`.
    """
    check_name("cohort name", name)
    table = cohorts / f"{name}.tsv"
    if not table.is_file():
        raise TableError(
            f"cohort {name!r}: {table} does not exist; `neuromf index FOLDER --cohort {name}` makes it"
            f"{nearest(name, _stems(cohorts))}"
        )
    return read_cohort(table)


def find_release(
    name: str, releases: Path = RELEASES, cohorts: Path = COHORTS
) -> tuple[tuple[ReleaseRow, ...], dict[str, Cohort]]:
    """Read the release ``<releases>/<name>.tsv`` and the cohorts that it draws on, by name.

    Raises:
        TableError: there is no such release: with the nearest name and the command that makes it; one of its cohorts is
            gone; or as `read_release` and `read_cohort`.
    """
    check_name("release name", name)
    table = releases / f"{name}.tsv"
    if not table.is_file():
        known = _stems(cohorts)
        cohort = known[0] if len(known) == 1 else "COHORT"
        first = "" if known else "`neuromf index FOLDER --cohort COHORT`, then "
        raise TableError(
            f"release {name!r}: {table} does not exist; {first}`neuromf release create {name} --cohort {cohort}` makes it"
            f"{nearest(name, _stems(releases))}"
        )
    rows = read_release(table)
    names = dict.fromkeys(row.cohort for row in rows)
    if gone := [one for one in names if not (cohorts / f"{one}.tsv").is_file()]:
        raise TableError(
            f"{table} draws on the cohort {gone[0]!r}: {cohorts / gone[0]}.tsv does not exist; restore it and its .json, or"
            f" choose another release{nearest(gone[0], _stems(cohorts))}"
        )
    return rows, {one: read_cohort(cohorts / f"{one}.tsv") for one in names}


def _stems(folder: Path) -> list[str]:
    return sorted(path.stem for path in folder.glob("*.tsv"))
