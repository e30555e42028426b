"""Typed tables: round trips, and refusals that name the row."""

from dataclasses import replace
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


@pytest.mark.parametrize(
    ("sidecar", "message"),
    [
        ("{", "damaged or no JSON"),
        ("[]", "holds a list"),
        ("{}", "lacks root"),
        ('{"root": 3}', "root is 3; give a text"),
        ("[" * 100_000, "damaged or no JSON"),
    ],
)
def test_a_damaged_sidecar_is_named(tmp_path, sidecar, message):
    table = write_cohort(tmp_path, "")
    table.with_suffix(".json").write_text(sidecar)
    with pytest.raises(TableError, match=message) as error:
        tables.read_cohort(table)
    assert "study.json" in str(error.value)


def test_tables_of_100_000_columns_or_with_a_column_twice_are_refused(tmp_path):
    table = write_cohort(tmp_path, "")
    header = table.read_text().strip()
    table.write_text(header + "".join(f"\tq{i}" for i in range(100_000)) + "\n")
    with pytest.raises(TableError, match="has 100006 columns, at most 2000 are read; leave out"):
        tables.read_cohort(table)
    table.write_text(f"{header}\tage\tage\n")
    with pytest.raises(TableError, match="column 'age' is there 2 times"):
        tables.read_cohort(table)


def test_quotes_and_odd_separators_stay_inside_their_cell(tmp_path):
    note = 'a "quote, unicode\u2028line, \x0b and \x85 end'
    cohort = Cohort("study", Path("/data"), (scan("01", extra={"note": note}), scan("02", extra={"note": '"'})), "bids")
    tables.write_cohort(tmp_path / "study.tsv", cohort)
    assert tables.read_cohort(tmp_path / "study.tsv") == cohort


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("../../x\tn/a\tT1w\ta\ttrain", "participant_id '../../x' must consist of letters"),
        ("01\tn/a\tT1w\t../a\ttrain", "cohort '../a' is no cohort's name"),
        ("01\t$(rm -rf)\tT1w\ta\ttrain", "session_id"),
        ("01\tn/a\tT1w\ta\tall", "split is 'all'"),
    ],
)
def test_a_release_that_names_other_folders_is_refused(tmp_path, row, message):
    (tmp_path / "r.tsv").write_text("participant_id\tsession_id\tmodality\tcohort\tsplit\n" + row + "\n")
    with pytest.raises(TableError, match="row 2") as error:
        tables.read_release(tmp_path / "r.tsv")
    assert message in str(error.value)


@pytest.mark.parametrize("cells", ["ok\t\tx\tmany", "fine\t\tx\t3", "ok\t\tx\t-1", "ok\t\tx\t" + "9" * 5000])
def test_a_damaged_manifest_is_refused_by_its_row(tmp_path, cells):
    path = tmp_path / "shard-0000.tsv"
    path.write_text("scan_id\tstatus\treason\tfile\tbytes\tsha256\tkey\n" + f"sub-1_T1w\t{cells}\tab\tk\n")
    with pytest.raises(TableError, match=r"shard-0000\.tsv, row 2: status .*remove the damaged file"):
        tables.read_manifest(path)


def test_links_out_of_the_root_are_told(tmp_path):
    root, other = tmp_path / "root", tmp_path / "other.nii"
    root.mkdir()
    other.touch()
    (root / "inside.nii").touch()
    (root / "near.nii").symlink_to("inside.nii")
    (root / "far.nii").symlink_to(other)
    (tmp_path / "alias").symlink_to(root)
    assert [tables.leads_out(tmp_path / "alias", name) for name in ("inside.nii", "near.nii", "gone.nii")] == [""] * 3
    assert "other.nii, which leaves the cohort's root; copy the file there" in tables.leads_out(root, "far.nii")


def test_tables_only_grow_at_the_end(tmp_path):
    used, table = tmp_path / "used.txt", tmp_path / "study.tsv"
    tables.record_use([scan("01"), scan("02")], used)
    tables.check_append_only(table, [scan("01"), scan("02"), scan("03")], used)
    with pytest.raises(TableError, match="row 2: was sub-01_T1w when the table was last used, is sub-02_T1w"):
        tables.check_append_only(table, [scan("02"), scan("01")], used)
    with pytest.raises(TableError, match="row 3: was sub-02_T1w"):
        tables.check_append_only(table, [scan("01")], used)


def test_another_shard_size_is_refused_once_one_is_in_use(tmp_path):
    used = tmp_path / "shard_size_in_use.txt"
    tables.check_shard_size("study", 64, used)
    used.write_text("32\n")
    tables.check_shard_size("study", 32, used)
    with pytest.raises(TableError, match="shard_size is 64, but cohort study .* set shard_size: 32 .or remove"):
        tables.check_shard_size("study", 64, used)


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


def test_a_releases_modality():
    rows = [ReleaseRow("1", None, modality, "a", "train") for modality in ("FLAIR", "FLAIR", "T1w")]
    assert tables.release_modality(rows[:2]) == "FLAIR" and tables.release_modality(rows) == "mixed"


def excel(text: str) -> bytes:
    """As Excel saves a text file: a byte-order mark, CRLF, empty columns and rows behind the table."""
    lines = [f"{line}\t\t" for line in text.splitlines()]
    return "\ufeff".encode() + "\r\n".join([*lines, "\t" * (lines[0].count("\t")), ""]).encode()


def quoted(text: str) -> bytes:
    """As LibreOffice saves it: every cell in quotes."""
    return "\n".join("\t".join(f'"{cell}"' for cell in line.split("\t")) for line in text.splitlines()).encode()


EDITED = {
    "excel": excel,
    "quotes": quoted,
    "mark": lambda text: text.encode("utf-8-sig"),
    "crlf": lambda text: text.replace("\n", "\r\n").encode(),
    "cr": lambda text: text.replace("\n", "\r").encode(),
    "no last newline": lambda text: text.rstrip().encode(),
    "more newlines": lambda text: f"{text}\n\n  \n".encode(),
    "spaces": lambda text: text.replace("\t", " \t").replace("\n", " \n").encode(),
    "columns": lambda text: "\n".join("\t".join([*line.split("\t")[::-1], "x"]) for line in text.splitlines()).encode(),
}


@pytest.mark.parametrize("edit", EDITED)
def test_an_editors_spelling_of_a_table_changes_no_row_and_no_hash(tmp_path, edit):
    table = tmp_path / "r.tsv"
    rows = (ReleaseRow("02", None, "T1w", "a", "train"), ReleaseRow("01", "b", "T1w", "a-b_1", "test"))
    tables.write_release(table, rows)
    before = tables.file_sha256(table)
    assert tables.release_sha256(rows) == before, "models trained before rows were hashed carry the file's hash"
    table.write_bytes(EDITED[edit](table.read_text()))
    assert tables.read_release(table) == rows
    assert tables.file_sha256(table) != before and tables.release_sha256(tables.read_release(table)) == before
    assert tables.release_sha256(rows[::-1]) != before, "a training draws by the rows' order"

    cohort = Cohort(
        "c", Path("/data"), (scan("01"), Scan("02", "s", 'a "b" c/x.nii.gz', "FLAIR", "m.nii", True)), "bids"
    )
    tables.write_cohort(tmp_path / "c.tsv", cohort)
    (tmp_path / "c.tsv").write_bytes(EDITED[edit]((tmp_path / "c.tsv").read_text()))
    read = tables.read_cohort(tmp_path / "c.tsv")
    assert tuple(replace(one, extra={}) for one in read.scans) == cohort.scans


@pytest.mark.parametrize("shipped", ["demo", "demotrain"])
def test_the_shipped_releases_hash_as_their_files(shipped):
    table = Path(__file__).parents[2] / "config" / "releases" / f"{shipped}.tsv"
    assert tables.release_sha256(tables.read_release(table)) == tables.file_sha256(table)


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
