from __future__ import annotations

import pytest

from neuromf.cohort.visits import ParticipantRule, look_like_visits, written_alike
from neuromf.tables import TableError

PLAIN = [f"patient_{n:03d}" for n in range(1, 26)]


@pytest.mark.parametrize(
    ("ids", "people"),
    [
        ([f"genius_080{n}" for n in range(4)], 1),
        (["BraTS-GLI-00005-100", "BraTS-GLI-00005-101", "BraTS-GLI-00006-000"], 1),
        (["001_S_0001_bl", "001_S_0001_m12", "001_S_0002_bl"], 1),
        (["001bl", "001m06", "002bl"], 1),
        (["anna_pre", "anna_post", "bob_pre", "bob_post"], 2),
        (["001_20190304", "001_20200506"], 1),
        (["p1.2019-03-04", "p1.2020-05-06"], 1),
        (["001", "001_followup"], 1),
        (["OAS1_0061_MR1", "OAS1_0061_MR2"], 1),
        (["001_V1", "001_V2"], 1),
        (["01_1", "01_2", "02_1"], 1),
        (["0012a", "0012b"], 1),
        (["P-3 visit1", "P-3 visit2"], 1),
        ([*PLAIN, "patient_001_fu1"], 1),
        (["OAS1_0001_MR1_mpr-1", "OAS1_0001_MR2_mpr-1", "OAS1_0002_MR1_mpr-1"], 1),
        (["100206_3T_MPR1", "100206_3T_MPR2", "100307_3T_MPR1"], 1),
        (["001", "001_T0", "002"], 1),
        (["001_20190304", "001_20200506", "002_20180101", "003"], 1),
    ],
)
def test_ids_that_look_like_visits(ids: list[str], people: int) -> None:
    (visits,) = look_like_visits(ids)
    assert " " not in visits.pattern, "which a terminal breaks"
    assert len(visits.people) == people and "fall into train and test" in str(visits)
    rule = ParticipantRule.parse(visits.pattern).expression
    joined = {one: rule.match(one)[1] for one in ids}  # type: ignore[index]
    assert all(len({joined[one] for one in group}) == 1 for group in visits.people), "the option joins them"
    others = set(ids) - {one for group in visits.people for one in group}
    if not visits.pattern.endswith(r"\d$"):
        assert len({joined[one] for one in others}) == len(others), "and nobody else"


@pytest.mark.parametrize(
    "ids",
    [
        PLAIN,
        [f"{n:04d}" for n in range(1, 7)],
        [f"sub{n}" for n in range(95, 108)],
        [f"site1_{n:03d}" for n in range(1, 30)] + [f"site2_{n:03d}" for n in range(1, 30)],
        ["001_bl", "002_bl", "003_bl"],
        ["01", "03", "07", "11", "12"],
        [f"{n}" for n in (103, 117, 142, 155, 171, 190)],
        ["Anna", "Bob", "Anna Maria"],
        [],
    ],
)
def test_ids_that_do_not(ids: list[str]) -> None:
    assert look_like_visits(ids) == []


def test_ids_that_are_written_alike() -> None:
    ids = ["patient_001", "Patient-1", "patient_010", "Zo\u00eb", "Zoe\u0308", "a1", "a11", "1-1", "11", "s1_01", "s11"]
    assert written_alike(ids) == [("Patient-1", "patient_001"), ("Zoe\u0308", "Zo\u00eb")]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("(", "is no regular expression"),
        (".+", "has no group"),
        ("(?:a)", "has no group"),
        ("(?P<a", "no regular expr"),
    ],
)
def test_what_is_no_rule(text: str, message: str) -> None:
    with pytest.raises(TableError, match=message) as caught:
        ParticipantRule.parse(text)
    assert "\n" not in str(caught.value)
