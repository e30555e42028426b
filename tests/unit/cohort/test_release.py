from __future__ import annotations

import string
from collections import defaultdict
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neuromf.cohort.release import create_release, split_of, visits_across_splits
from neuromf.tables import Cohort, ReleaseRow, Scan, TableError, read_cohort, read_release, write_cohort

IDS = st.text(string.ascii_letters + string.digits, min_size=1, max_size=12)
REPOSITORY = Path(__file__).parents[3]


def cohort(
    people: list[str], name: str = "c", sessions: tuple[str | None, ...] = (None,), modality: str = "T1w"
) -> Cohort:
    scans = [Scan(p, s, f"{p}_{s}.nii.gz", modality) for p in people for s in sessions]
    return Cohort(name, Path("/data"), tuple(scans))


def people(n: int, start: int = 0) -> list[str]:
    return [f"p{i:04d}" for i in range(start, start + n)]


def test_the_split_of_a_few_ids_is_fixed_for_ever() -> None:
    assert [split_of(p) for p in ("phantom01", "phantom02", "demo003", "demo020", "01")] == [
        "train",
        "test",
        "val",
        "test",
        "train",
    ]


@given(st.lists(IDS, min_size=60, max_size=80, unique=True), st.integers(40, 59))
@settings(max_examples=25, deadline=None)
def test_growth_moves_nobody(tmp_path_factory: pytest.TempPathFactory, ids: list[str], before: int) -> None:
    folder = tmp_path_factory.mktemp("releases")
    fractions = (0.5, 0.0, 0.5)
    small = create_release("small", [cohort(ids[:before])], folder, fractions=fractions)
    large = create_release("large", [cohort(ids[::-1])], folder, fractions=fractions)
    later = {row.participant_id: row.split for row in large}
    assert all(later[row.participant_id] == row.split for row in small)


@given(IDS, st.sampled_from(["train", "val", "test"]))
def test_every_id_has_one_split_whatever_the_fractions(participant: str, split: str) -> None:
    fractions = {"train": (1.0, 0.0, 0.0), "val": (0.0, 1.0, 0.0), "test": (0.0, 0.0, 1.0)}[split]
    assert split_of(participant, fractions) == split


def test_shares_are_80_10_10() -> None:
    splits = [split_of(p) for p in people(20_000)]
    assert splits.count("train") / 20_000 == pytest.approx(0.8, abs=0.01)
    assert splits.count("val") / 20_000 == pytest.approx(0.1, abs=0.01)


def test_sessions_and_cohorts_of_a_person_share_a_split(tmp_path: Path) -> None:
    given_cohorts = [cohort(people(60), "a", ("1", "2")), cohort(people(60), "b")]
    rows = create_release("r", given_cohorts, tmp_path)
    splits = defaultdict(set)
    for row in rows:
        splits[row.participant_id].add(row.split)
    assert len(rows) == 180 and all(len(s) == 1 for s in splits.values())
    assert read_release(tmp_path / "r.tsv") == rows


def test_only_the_modality_asked_for(tmp_path: Path) -> None:
    rows = create_release(
        "r", [cohort(people(60)), cohort(people(60), "f", modality="FLAIR")], tmp_path, modality="FLAIR"
    )
    assert {row.cohort for row in rows} == {"f"}
    with pytest.raises(TableError, match=r"no T2w scan .* they hold T1w"):
        create_release("s", [cohort(people(60))], tmp_path, modality="T2w")


def test_a_release_never_changes(tmp_path: Path) -> None:
    create_release("r", [cohort(people(60))], tmp_path)
    text = (tmp_path / "r.tsv").read_text()
    with pytest.raises(TableError, match=r"r\.tsv exists and a release never changes; .*r-2"):
        create_release("r", [cohort(people(70))], tmp_path)
    assert (tmp_path / "r.tsv").read_text() == text


def test_an_empty_split_is_refused_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(TableError, match=r"falls into test .*add participants"):
        create_release("r", [cohort(["phantom01"])], tmp_path)
    with pytest.raises(TableError, match="falls into train"):
        create_release("r", [cohort(["phantom02"])], tmp_path)
    assert not (tmp_path / "r.tsv").exists()


def test_wrong_fractions_and_cohorts_given_twice(tmp_path: Path) -> None:
    with pytest.raises(TableError, match="must be at least 0 and sum to 1"):
        create_release("r", [cohort(people(60))], tmp_path, fractions=(0.8, 0.1, 0.2))
    with pytest.raises(TableError, match="cohort c is given twice"):
        create_release("r", [cohort(people(60)), cohort(people(60))], tmp_path)


def test_the_demo_release_is_what_the_hash_says(tmp_path: Path) -> None:
    demo = read_cohort(REPOSITORY / "config/cohorts/demo.tsv")
    rows = create_release("demo", [demo], tmp_path)
    shipped = REPOSITORY / "config/releases/demo.tsv"
    assert rows == read_release(shipped)
    counts = [sum(row.split == split for row in rows) for split in ("train", "val", "test")]
    assert len(demo.scans) >= 24 and counts[1] >= 2 and counts[2] >= 4


def test_cohort_tables_survive_the_round_trip(tmp_path: Path) -> None:
    one = cohort(people(3), "three", ("1",))
    write_cohort(tmp_path / "three.tsv", one)
    assert read_cohort(tmp_path / "three.tsv") == one


def test_visits_that_lie_in_several_splits_are_told_of() -> None:
    rows = [ReleaseRow(f"genius080{n}", None, "T1w", "c", split) for n, split in enumerate(["train", "test", "train"])]
    (told,) = visits_across_splits(rows)
    assert "genius0800 (train), genius0801 (test)" in told and "--participant" in told
    assert visits_across_splits(rows[::2]) == [], "in one split nobody is trained on and tested with"
    visits = [ReleaseRow("genius080", str(n), "T1w", "c", "train") for n in range(3)]
    assert visits_across_splits(visits) == []
