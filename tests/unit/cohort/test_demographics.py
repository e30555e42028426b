from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from neuromf.cohort.demographics import read_leniently
from neuromf.cohort.index import IndexReport, index


def indexed(
    folder: Path, table: bytes | str, ids: tuple[str, ...] = ("001", "002"), name: str = "participants.tsv"
) -> IndexReport:
    root = folder / "data"
    root.mkdir()
    for one in ids:
        (root / f"{one}_T1w.nii.gz").write_bytes(b"")
    (root / name).write_bytes(table if isinstance(table, bytes) else table.encode())
    return index(root, "c", folder)


def ages(report: IndexReport) -> list[str | None]:
    return [scan.extra.get("age") for scan in report.added]


def test_all_people_found(tmp_path: Path) -> None:
    report = indexed(tmp_path, "participant_id\tage\n001\t30\n002\t40\n")
    assert ages(report) == ["30", "40"] and not report.warnings
    assert report.people == "2 of 2 people found in participants.tsv" and report.people in str(report)


@pytest.mark.parametrize(
    "written", ["1", "subj-001", "001 ", "sub-1", "SUB-001", "Subject_1", "1.0", " 001", "sub_001", "sub001"]
)
def test_an_id_that_is_written_otherwise_is_matched_and_said(tmp_path: Path, written: str) -> None:
    report = indexed(tmp_path, f"participant_id\tage\n{written}\t30\n002\t40\n")
    assert ages(report) == ["30", "40"] and not report.warnings
    exact = written.strip() in ("001", "sub_001")
    assert ("1 of them by an ID that is written otherwise" in report.people) is not exact


def test_a_table_that_matches_nobody_is_told(tmp_path: Path) -> None:
    report = indexed(tmp_path, "participant_id\tage\nA17\t30\nA18\t40\n")
    assert ages(report) == [None, None]
    (warning,) = report.warnings
    assert "0 of 2 people found" in warning and "no row for '001'" in warning and "matches nobody: 'A17'" in warning


def test_ambiguous_ids_are_left_alone(tmp_path: Path) -> None:
    report = indexed(tmp_path, "participant_id\tage\n1\t30\n", ("001", "01"))
    assert ages(report) == [None, None] and "0 of 2 people" in " ".join(report.warnings)


def test_of_two_rows_that_are_alike_neither_is_taken(tmp_path: Path) -> None:
    report = indexed(tmp_path, "participant_id\tage\n1\t30\n01\t40\n", ("001",))
    assert ages(report) == [None] and "0 of 1 people" in report.warnings[0]


@pytest.mark.parametrize(
    ("table", "note"),
    [
        ("participant_id\tage\tstädt\n001\t30\tKöln\n".encode("latin-1"), "was read as Windows-1252"),
        ("participant_id\tage\n001\t30\n".encode("utf-16"), "is UTF-16 and was read as such"),
        ("participant_id\tage\n001\t30\n".encode("utf-16-le"), "is UTF-16 and was read as such"),
        ("participant_id\tage\n001\t30\n".encode("utf-16-be"), "is UTF-16 and was read as such"),
        ("participant_id\tage\t\n001\t30\n", ""),
        ("participant_id\t\tage\n001\t30\n", ""),
        ("participant_id\tage\n001\t30\t\n", ""),
        ("\ufeffparticipant_id\tage\r\n001\t30\r\n\r\n", ""),
        ("participant_id\tage\r001\t30\r", ""),
        ('Participant_ID \t"age"\n001\t30\n', ""),
        ("participant_id\tage\tage\n001\t30\t31\n", "column 'age' is there several times"),
        ("participant_id\tage\n001\t30\n002\t40\tF\n", "1 rows have more or fewer cells than the header"),
    ],
)
def test_tables_as_people_save_them(tmp_path: Path, table: bytes | str, note: str) -> None:
    report = indexed(tmp_path, table, ("001",))
    assert [scan.extra.get("age") or scan.extra.get('"age"') for scan in report.added] == ["30"]
    assert (note in " ".join(report.warnings)) and bool(report.warnings) is bool(note)


@pytest.mark.parametrize(
    ("table", "note"),
    [
        ("participant_id,age\n001,30\n", "no column participant_id (found: participant_id,age); separate"),
        ("id\tage\n001\t30\n", "no column participant_id (found: id, age)"),
        ("", "an empty file"),
        (b"\x00\x01\xff\xfe", "no column participant_id"),
        ("participant_id\tage\n", "has no rows"),
        ("participant_id" + "\tx" * 3000, "3001 columns"),
    ],
)
def test_tables_that_cannot_be_used_do_not_stop_the_index(tmp_path: Path, table: bytes | str, note: str) -> None:
    report = indexed(tmp_path, table)
    assert len(report.added) == 2 and note in " ".join(report.warnings)


@pytest.mark.parametrize("name", ["participants.csv", "participants.xlsx", "Participants.tsv", "PARTICIPANTS.CSV"])
def test_a_table_under_another_name_is_told(tmp_path: Path, name: str) -> None:
    report = indexed(tmp_path, "participant_id,age\n001,30\n", name=name)
    assert f"{name} is not read: save it as" in report.warnings[0]


def test_a_folder_or_a_broken_sessions_table_do_not_stop_the_index(tmp_path: Path) -> None:
    root = tmp_path / "data"
    (root / "sub-01/ses-1/anat").mkdir(parents=True)
    (root / "sub-01/ses-1/anat/sub-01_ses-1_T1w.nii.gz").touch()
    (root / "participants.tsv").mkdir()
    (root / "sub-01/sub-01_sessions.tsv").write_bytes("session_id\tstädt\tage\nses-1\tKöln\t33\n".encode("latin-1"))
    report = index(root, "c", tmp_path)
    assert report.added[0].extra["age"] == "33"
    assert any("participants.tsv is not used: Is a directory" in warning for warning in report.warnings)
    assert any("sessions.tsv is not UTF-8" in warning for warning in report.warnings)


@given(st.binary(max_size=200))
def test_no_bytes_stop_the_index(raw: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        for content in (raw, b"participant_id\tage\n" + raw, b"\xff\xfe" + raw):
            (Path(folder) / "t.tsv").write_bytes(content)
            rows, _ = read_leniently(Path(folder) / "t.tsv", "participant_id")
            assert all("participant_id" in row for row in rows)


def test_values_stay_in_their_columns_where_the_header_has_a_tab_too_many(tmp_path: Path) -> None:
    (tmp_path / "t.tsv").write_text("participant_id\t\tage\tsex\n001\t30\tF\n", encoding="utf-8")
    assert read_leniently(tmp_path / "t.tsv", "participant_id")[0] == [
        {"participant_id": "001", "age": "30", "sex": "F"}
    ]
