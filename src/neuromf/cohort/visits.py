"""Who is one person: IDs that look like visits, and a rule of the user's that tells person and visit apart.

A person's split is a hash of the ID. Visits under IDs of their own are people, who fall into train and test.
"""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from neuromf.cohort.layouts import FlatFolder, Found, Layout
from neuromf.cohort.names import MODALITY_OF
from neuromf.tables import TableError

MOST_VISITS = 9  # of one person; more that share the beginning of their IDs are people of one site
FEW_VISITS = 5  # where only a last digit tells them apart
SHOWN = 4
_NO_VISIT = ("anat", "mri", "nifti", "nii", "raw")  # folders

_VISIT_WORD = (
    r"bl|base(?:line)?|sc(?:reening|rmri)?|init(?:ial)?|fu\d*|follow-?up\d*|[mvywdts]\d{1,3}|\d{1,3}(?:m|mo|y|yr|w|wk)|"
    r"(?:mo|month|yr|year|wk|week|day|visit|tp|timepoint|time|ses|session|scan|run|wave|exam|mr|mpr|rep)s?-?\d{1,3}|"
    r"pre|post|pre-?op|post-?op|before|after|re-?test|test|first|second|third|(?:19|20)\d{6}|(?:19|20)\d\d-\d\d-\d\d"
)
_AFTER_ID = re.compile(
    rf"(?i)(?P<base>.*[^-_. ])[-_. ](?P<visit>{_VISIT_WORD})|(?P<glued>.*\d)(?P<word>[a-z]*(?:{_VISIT_WORD}))"
)
_AMID = re.compile(rf"(?i)(?P<base>.*?\d.*?)[-_. ](?P<visit>{_VISIT_WORD})[-_. ].*")
_NUMBER = re.compile(r"(?P<base>.*\d.*?)[-_. ](?P<visit>\d{1,4})")
_LETTER = re.compile(r"(?P<base>.*\d)[-_. ]?(?P<visit>[a-eA-E])")
_LAST_DIGIT = re.compile(r"(?P<name>(?:.*\D)?)(?P<number>\d{3,})")


@dataclass(frozen=True)
class Visits:
    """IDs that look like visits, in groups that look like a person each, and the ``--participant`` that joins them."""

    people: tuple[tuple[str, ...], ...]
    pattern: str

    def __str__(self) -> str:
        ids = sum(map(len, self.people))
        names = ", ".join(self.people[0][:SHOWN]) + (", …" if len(self.people[0]) > SHOWN else "")
        many = f"{ids} IDs look like visits of {len(self.people)} {'person' if len(self.people) == 1 else 'people'}"
        return f"{many}, for instance {names}: as people of their own they fall into train and test"


def look_like_visits(ids: Iterable[str]) -> list[Visits]:
    """Return which IDs look like visits of one person, one entry for each way of telling visits apart.

    Looked for are a word or date of a visit (``001_bl``, ``001m12``, ``001_20190304``), a number (``00005-100``) or a letter
    after an ID with digits, and a last digit that counts from 0 or 1 without filling its ten (``0800`` to ``0803``).
    """
    every = sorted(set(ids))
    found = []
    words, pattern = _by_word(every)
    if words:
        found.append(Visits(_grouped(words), pattern))
    left = [one for one in every if one not in words]
    numbers = _sharing({i: (m["base"], m["visit"]) for i in left if (m := _NUMBER.fullmatch(i))}, MOST_VISITS)
    if numbers:
        found.append(Visits(_grouped(numbers), r"(.*?\d.*?)(?:[-_.\s]\d{1,4})?$"))
    left = [one for one in left if one not in numbers]
    letters = _sharing({i: (m["base"], m["visit"]) for i in left if (m := _LETTER.fullmatch(i))}, FEW_VISITS)
    if letters:
        found.append(Visits(_grouped(letters), r"(.*\d)(?:[-_.\s]?[a-eA-E])?$"))
    if digits := _by_last_digit([one for one in left if one not in letters]):
        found.append(Visits(digits, r"(.+)\d$"))
    return found


def plain_id(text: str) -> str:
    """Return an ID without case, separators and leading zeros, in which one person's ID is often written differently."""
    text = unicodedata.normalize("NFC", text).lower()
    text = re.sub(r"(?<!\d)0+(?=\d)", "", text)
    return re.sub(r"[\W_]+", "_", re.sub(r"(?<!\d)[\W_]+|[\W_]+(?!\d)", "", text))  # 1-1 is not 11


def written_alike(ids: Iterable[str]) -> list[tuple[str, ...]]:
    """Return groups of IDs that differ in case, separators or leading zeros only: ``patient_001`` and ``Patient-1``."""
    groups: dict[str, list[str]] = {}
    for one in sorted(set(ids)):
        groups.setdefault(plain_id(one), []).append(one)
    return [tuple(group) for plain, group in groups.items() if plain and len(group) > 1]


def _by_word(ids: Sequence[str]) -> tuple[dict[str, tuple[str, str]], str]:
    """Return ID → (person, visit) of those with a visit's word that share the person, and the expression that joins them."""
    at_end, amid = {}, {}
    for one in ids:
        if match := _AMID.fullmatch(one):
            amid[one] = (match["base"], match["visit"])
        elif match := _AFTER_ID.fullmatch(one):
            at_end[one] = (match["base"] or match["glued"], match["visit"] or match["word"])
    people = {base for base, _ in at_end.values()}
    at_end |= {one: (one, "") for one in ids if one in people}  # 001 beside 001_m12
    shared = _sharing(at_end, len(ids)) | _sharing(amid, MOST_VISITS)
    words = {re.sub(r"\d+", _digits, re.escape(word)) for _, word in (at_end | amid).values() if word}
    ordered = sorted(words, key=lambda word: (-len(word), word))
    either = "|".join(rf"[-_.\s]{word}" if word.startswith("\\d") else rf"[-_.\s]?{word}" for word in ordered)
    more = r"(?:[-_.\s].*)?" if amid else ""
    return shared, rf"(.+?)(?:(?:{either}){more})?$"


def _digits(number: re.Match[str]) -> str:
    return rf"\d{{{len(number[0])}}}" if len(number[0]) > 3 else r"\d+"


def _sharing(parts: Mapping[str, tuple[str, str]], most: int) -> dict[str, tuple[str, str]]:
    """Return the IDs whose person at least one other has, and at most ``most``."""
    groups = defaultdict(list)
    for one, (base, _) in parts.items():
        groups[base].append(one)
    return {one: parts[one] for members in groups.values() if 2 <= len(members) <= most for one in members}


def _grouped(parts: Mapping[str, tuple[str, str]]) -> tuple[tuple[str, ...], ...]:
    groups: dict[str, list[str]] = {}
    for one, (base, _) in parts.items():
        groups.setdefault(base, []).append(one)
    return tuple(tuple(members) for members in groups.values())


def _by_last_digit(ids: Iterable[str]) -> tuple[tuple[str, ...], ...]:
    """Return groups of IDs whose numbers differ in the last digit and count from 0 or 1; none where most IDs do not."""
    series: dict[tuple[str, int], dict[int, str]] = {}
    for one in ids:
        if match := _LAST_DIGIT.fullmatch(one):
            series.setdefault((match["name"], len(match["number"])), {})[int(match["number"])] = one
    found: list[tuple[str, ...]] = []
    for numbers in series.values():
        groups = [tuple(numbers[n] for n in group) for group in _counted_from_the_start(numbers)]
        if sum(map(len, groups)) > 0.6 * len(numbers):
            found += groups
    return tuple(found)


def _counted_from_the_start(numbers: Iterable[int]) -> Iterator[list[int]]:
    known = set(numbers)
    for ten in sorted({number // 10 for number in known}):
        group = [number for number in range(10 * ten, 10 * ten + 10) if number in known]
        start = group[0] % 10
        begins = start <= 1 and (start == 1 or group[0] - 1 not in known)
        if ten > 0 and begins and 2 <= len(group) <= FEW_VISITS and group[-1] - group[0] == len(group) - 1:
            yield group


# --- a rule of the user's -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ParticipantRule:
    """``--participant``: a regular expression whose group is the person; what is left of the ID becomes the session.

    It is matched from the beginning of the ID that the layout finds, or of the path below the folder if it has a ``/``. The
    group is the one called ``participant``, else the first; a group called ``session`` is the session.
    """

    expression: re.Pattern[str]

    @classmethod
    def parse(cls, text: str) -> ParticipantRule:
        """Return the rule.

        Raises:
            TableError: not a regular expression, or one without a group.
        """
        try:
            expression = re.compile(text)
        except re.error as error:
            raise TableError(f"--participant {text!r} is no regular expression: {error}") from None
        if not expression.groups:
            raise TableError(
                f"--participant {text!r} has no group; put what names the person in parentheses: '(.+)_[0-9]+'"
            )
        return cls(expression)

    @property
    def on_path(self) -> bool:
        return "/" in self.expression.pattern

    def reads(self, layout: Layout) -> Layout:
        """Return the layout to read with: a rule may name people of a flat folder's sub-folders."""
        return replace(layout, nested=True) if isinstance(layout, FlatFolder) else layout

    def apply(self, scan: Found) -> Found | None:
        """Return the scan with person and session by this rule, or None where it does not match."""
        text = scan.image if self.on_path else scan.person
        match = self.expression.match(text)
        group = "participant" if "participant" in self.expression.groupindex else 1
        if match is None or not (person := match[group]):
            return None
        named = match["session"] if "session" in self.expression.groupindex else None
        if self.on_path:  # the file's own name holds the modality; what the layout took for the ID does not
            folders = [name for name in scan.image.split("/")[:-1] if name.lower() not in (*MODALITY_OF, *_NO_VISIT)]
            rest = "/".join([*folders, scan.person]).replace(person, "")
        else:
            rest = text[: match.start(group)] + text[match.end(group) :]
        rest = re.sub(r"^[-_./ ]+|[-_./ ]+$", "", rest)
        session = named or "-".join(part for part in (rest, scan.session) if part)
        return replace(scan, person=person, session=session or None, file_id=scan.person)
