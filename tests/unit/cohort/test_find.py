"""A name that is not there is one line with the nearest name and the command that makes it."""

from __future__ import annotations

from pathlib import Path

import pytest

from neuromf.cohort.find import find_cohort, find_release
from neuromf.tables import Cohort, ReleaseRow, Scan, TableError, write_cohort, write_release


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the cohort `study` and its release `first`."""
    monkeypatch.chdir(tmp_path)
    write_cohort(Path("config/cohorts/study.tsv"), Cohort("study", Path("/data"), (Scan("1", None, "1.nii", "T1w"),)))
    write_release(Path("config/releases/first.tsv"), [ReleaseRow("1", None, "T1w", "study", "train")])
    return tmp_path


def said(find: object, name: str) -> str:
    with pytest.raises(TableError) as error:
        find(name)  # type: ignore[operator]
    assert "\n" not in str(error.value)
    return str(error.value)


def test_what_is_there() -> None:
    rows, cohorts = find_release("first")
    assert len(rows) == 1 and list(cohorts) == ["study"] and cohorts["study"] == find_cohort("study")


def test_a_release_that_is_not_there() -> None:
    told = said(find_release, "frist")
    assert told.startswith(
        "release 'frist': config/releases/frist.tsv does not exist; `neuromf release create frist --cohort study`"
    )
    assert told.endswith("did you mean 'first'?")
    Path("config/releases/first.tsv").unlink()
    assert said(find_release, "first").endswith("there is none yet")
    Path("config/cohorts/study.tsv").unlink()
    assert "`neuromf index FOLDER --cohort COHORT`, then `neuromf release create first" in said(find_release, "first")


def test_a_cohort_that_is_not_there() -> None:
    assert said(find_cohort, "stduy") == (
        "cohort 'stduy': config/cohorts/stduy.tsv does not exist; `neuromf index FOLDER --cohort stduy` makes it"
        "; did you mean 'study'?"
    )
    Path("config/cohorts/study.tsv").rename("config/cohorts/study2.tsv")
    told = said(find_release, "first")
    assert told.startswith(
        "config/releases/first.tsv draws on the cohort 'study': config/cohorts/study.tsv does not exist; restore"
    )
    assert told.endswith("did you mean 'study2'?")


@pytest.mark.parametrize("name", ["../first", "first.tsv", "", "a/b", "first\n"])
def test_what_is_no_name(name: str) -> None:
    assert "use letters, digits, _ and -" in said(find_release, name)
    assert "use letters, digits, _ and -" in said(find_cohort, name)
