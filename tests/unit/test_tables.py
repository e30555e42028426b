"""Typed tables: round trips, and refusals that name the row."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from neuromf import tables
from neuromf.tables import Cohort, ManifestRow, ReleaseRow, Scan, TableError


def scan(participant: str, **fields) -> Scan:
    return Scan(participant, None, f"{participant}.nii.gz", "T1w", **fields)


def write_cohort(folder: Path, text: str) -> Path:
    table = folder / "study.tsv"
    table.write_text("participant_id\tsession_id\timage\tmodality\tmask\tskull_stripped\n" + text)
    table.with_suffix(".json").write_text('{"root": "/data"}')
    return table


def test_a_cohort_survives_writing_and_reading(tmp_path):
    scans = (scan("01", extra={"age": "40"}), Scan("02", "a", "x/2.nii.gz", "FLAIR", "m.nii.gz", True, {"sex": "F"}))
    cohort = Cohort("study", Path("/data"), scans, "bids")
    tables.write_cohort(tmp_path / "study.tsv", cohort)
    assert tables.read_cohort(tmp_path / "study.tsv") == cohort


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("01\tn/a\ta.nii\tT1w\tn/a\tfalse\n01\tn/a\tb.nii\tT1w\tn/a\tfalse\n", "row 3: sub-01_T1w is already in row 2"),
        ("0-1\tn/a\ta.nii\tT1w\tn/a\tfalse\n", "row 2: participant_id '0-1'"),
        ("01\tn/a\t../a.nii\tT1w\tn/a\tfalse\n", "row 2: image '../a.nii' leaves"),
        ("01\tn/a\t/etc/passwd\tT1w\tn/a\tfalse\n", "row 2: image '/etc/passwd' leaves"),
        ("01\tn/a\tn/a\tT1w\tn/a\tfalse\n", "row 2: image is empty"),
        ("01\tn/a\ta.nii\tT1w\tn/a\tmaybe\n", "row 2: skull_stripped is 'maybe'"),
        ("01\tn/a\ta.nii\n", "row 2: 3 cells where the header has 6"),
    ],
)
def test_a_wrong_row_is_refused_by_its_number(tmp_path, rows, message):
    with pytest.raises(TableError) as error:
        tables.read_cohort(write_cohort(tmp_path, rows))
    assert message in str(error.value)


def test_missing_columns_and_files_are_named(tmp_path):
    with pytest.raises(TableError, match="root"):
        tables.read_cohort(tmp_path / "none.tsv")
    table = write_cohort(tmp_path, "")
    table.write_text("participant_id\timage\n")
    with pytest.raises(TableError, match="missing column session_id, modality"):
        tables.read_cohort(table)
    table.write_bytes(b"participant_id\xff\n")
    with pytest.raises(TableError, match="not UTF-8"):
        tables.read_cohort(table)


def test_tables_only_grow_at_the_end(tmp_path):
    used, table = tmp_path / "used.txt", tmp_path / "study.tsv"
    tables.record_use([scan("01"), scan("02")], used)
    tables.check_append_only(table, [scan("01"), scan("02"), scan("03")], used)
    with pytest.raises(TableError, match="row 2: was sub-01_T1w when the table was last used, is sub-02_T1w"):
        tables.check_append_only(table, [scan("02"), scan("01")], used)
    with pytest.raises(TableError, match="row 3: was sub-02_T1w"):
        tables.check_append_only(table, [scan("01")], used)


@given(st.integers(1, 200), st.integers(1, 50), st.integers(0, 100))
def test_growth_moves_no_scan_between_shards(n, shard_size, added):
    before = Cohort("c", Path(), tuple(scan(f"{i}") for i in range(n)))
    after = Cohort("c", Path(), tuple(scan(f"{i}") for i in range(n + added)))
    for shard in range(before.shard_count(shard_size)):
        old, new = before.shard(shard, shard_size), after.shard(shard, shard_size)
        assert new[: len(old)] == old
    assert sum(len(after.shard(k, shard_size)) for k in range(after.shard_count(shard_size))) == n + added


def test_a_manifest_survives_writing_and_reading(tmp_path):
    rows = (
        ManifestRow("sub-01_T1w", "ok", "", "../a.nii.gz", 12, "ab", "k", {"brain_ml": 1200.5}),
        ManifestRow("sub-02_T1w", "failed", "all zero\tand\nmore"),
    )
    tables.write_manifest(tmp_path / "shard-0000.tsv", rows)
    read = tables.read_manifest(tmp_path / "shard-0000.tsv")
    assert read[0] == rows[0]
    assert (read[1].status, read[1].reason, read[1].figures) == ("failed", "all zero and more", {})


def test_releases(tmp_path):
    rows = (ReleaseRow("01", None, "T1w", "a", "train"), ReleaseRow("01", "2", "T1w", "b", "test"))
    tables.write_release(tmp_path / "r.tsv", rows)
    assert tables.read_release(tmp_path / "r.tsv") == rows
    tables.write_release(tmp_path / "r.tsv", (rows[0], rows[0]))
    with pytest.raises(TableError, match="row 3: sub-01_T1w of cohort a is listed twice"):
        tables.read_release(tmp_path / "r.tsv")
    with pytest.raises(TableError, match="row 2: cohort 'a' has no scan sub-01_T1w"):
        tables.check_release(tmp_path / "r.tsv", rows, {"a": Cohort("a", Path(), ()), "b": Cohort("b", Path(), ())})


def test_released_files_leave_out_failures_and_tell_cohorts_apart(tmp_path):
    for cohort in "ab":
        rows = [ManifestRow("sub-01_T1w", "ok", file="x.nii.gz"), ManifestRow("sub-02_T1w", "failed", "why")]
        tables.write_manifest(tmp_path / cohort / "shard-0000.tsv", rows)
    release = [ReleaseRow(p, None, "T1w", c, s) for c in "ab" for p, s in (("01", "train"), ("02", "test"))]
    manifests = {c: [tmp_path / c / "shard-0000.tsv"] for c in "ab"}
    files = tables.released_files(release, manifests)
    assert files["train"] == {f"{c}_sub-01_T1w": tmp_path / c / "x.nii.gz" for c in "ab"}
    assert files["test"] == {}
    alone = tables.released_files(release[:2], {"a": manifests["a"]})
    assert list(alone["train"]) == ["sub-01_T1w"]


def test_an_interrupted_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "table.json"
    tables.write_json(path, {"a": 1})
    with pytest.raises(RuntimeError), tables.atomic_path(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert path.read_text() == '{\n  "a": 1\n}\n'
    assert list(tmp_path.iterdir()) == [path]


@given(st.dictionaries(st.text(), st.integers()))
def test_content_hash_ignores_the_order_of_keys(content):
    backwards = dict(reversed(content.items()))
    assert tables.content_hash(content) == tables.content_hash(backwards)
