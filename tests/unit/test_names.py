"""Names become names of files: they are checked where they are made."""

import pytest

from neuromf.names import LONGEST, check_name, nearest
from neuromf.tables import TableError


@pytest.mark.parametrize("name", ["a", "2024_01", "2024-01-02", "0123", "1e5", "null", "on", "A-b_c", "x" * LONGEST])
def test_names_that_can_be_files(name):
    check_name("release name", name, [name, "other"])


@pytest.mark.parametrize(
    "name",
    [
        "",
        "../../escaped",
        "..",
        "a/b",
        "/a",
        ".a",
        "-a",
        "_a",
        "a b",
        "a\n",
        "a.tsv",
        "é",
        "a\x00",
        "x" * (LONGEST + 1),
        "²",
    ],
)
def test_names_that_cannot_are_refused_in_one_line(name):
    with pytest.raises(TableError, match="use letters, digits, _ and -, beginning with a letter or digit") as error:
        check_name("release name", name)
    assert "\n" not in str(error.value)


def test_a_name_that_differs_from_another_by_case_alone_is_refused():
    with pytest.raises(TableError, match="cohort name 'IXI': 'ixi' is there"):
        check_name("cohort name", "IXI", ["ixi", "adni"])
    check_name("cohort name", "IXI", ["ixi", "IXI"])


def test_the_nearest_name_or_the_known_ones():
    assert nearest("demmo", ["study", "demo"]) == "; did you mean 'demo'?"
    assert nearest("zzz", ["study", "demo"]) == "; known: demo, study"
    assert nearest("zzz", []) == "; there is none yet"
    assert nearest("zzz", [f"a{i:02d}" for i in range(30)]).endswith("a19 and 10 more")
