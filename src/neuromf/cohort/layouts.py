"""How public data sets name their files: one regular expression each, on a file's path below the data set's folder."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from neuromf.cohort.names import AS_IT_CAME, MODALITY_OF, STRIPPED, derivative, not_raw, stem_of

_NAMES = "|".join(sorted(MODALITY_OF, key=len, reverse=True))
_BRAIN = "|".join(sorted(STRIPPED, key=len, reverse=True))
_EXTENSION = r"\.nii(?:\.gz)?"
_ENTITIES = r"(?P<entities>(?:_[A-Za-z]+-[^/_]+)*)"


@dataclass(frozen=True)
class Found:
    """One scan as its path tells it; person and session are the data set's own IDs, not yet made letters and digits."""

    image: str
    person: str
    session: str | None
    modality: str
    mask: str | None
    skull_stripped: bool
    rank: tuple[int, str]  # of several scans of one session and modality the lowest is taken
    extra: dict[str, str]
    file_id: str = (
        ""  # what the layout takes for the person, where a rule of the user's divides it into person and session
    )


@dataclass(frozen=True)
class Layout:
    """A naming scheme.

    ``pattern`` matches the whole path of a scan, with groups ``participant`` and, where there are, ``session``,
    ``suffix`` (the modality), ``entities`` or ``repeat`` (what tells repeated scans apart) and ``brain`` (a
    skull-stripped copy). ``person`` makes a person's ID from the groups, ``mask`` the lesion mask's path from the
    scan's; the groups named in ``columns`` become columns of the table.
    """

    name: str
    pattern: re.Pattern[str]
    skull_stripped: bool = False
    person: str = "{participant}"
    mask: tuple[str, str] | None = None
    columns: tuple[str, ...] = ()

    def read(self, path: str) -> Found | None:
        """Return what a path says, or None if it is no raw scan of this layout. No file is looked at."""
        match = self.pattern.fullmatch(path)
        if match is None or derivative(stem_of(path)):
            return None
        groups = {key: value or "" for key, value in match.groupdict().items()}
        suffix, entities = groups.get("suffix", ""), groups.get("entities", "")
        modality = MODALITY_OF.get(suffix.lower().replace("mp-rage", "mprage"), suffix) or "T1w"
        if modality == "T1w" and "_ce-" in entities:
            modality = "T1c"
        repeats = entities.count("-") + bool(groups.get("repeat")) + bool(groups.get("brain"))
        return Found(
            image=path,
            person=self.person.format(**groups),
            session=groups.get("session") or None,
            modality=modality,
            mask=re.sub(*self.mask, path) if self.mask else None,
            skull_stripped=self.skull_stripped or bool(groups.get("brain")),
            rank=(repeats, re.sub(r"\d+", lambda number: number[0].zfill(8), path)),  # run-2 before run-10
            extra={column: groups[column] for column in self.columns if groups[column]},
        )


def _pattern(expression: str) -> re.Pattern[str]:
    return re.compile(expression + _EXTENSION)


LAYOUTS: tuple[Layout, ...] = (
    Layout(
        "OASIS-3 (XNAT download)",  # OAS30001_MR_d0129/anat2/NIFTI/sub-OAS30001_ses-d0129_run-01_T1w.nii.gz
        _pattern(
            r"(?:.*/)?(?P<participant>OAS\d+)_MR_(?P<session>d\d+)/anat\d+/(?:NIFTI/)?"
            r"sub-OAS\d+_sess?-d\d+" + _ENTITIES + r"_(?P<suffix>[A-Za-z0-9]+)"
        ),
    ),
    Layout(
        "BIDS",  # sub-01/ses-1/anat/sub-01_ses-1_run-1_T1w.nii.gz
        _pattern(
            r"sub-(?P<participant>[^/_]+)/(?:ses-(?P<session>[^/_]+)/)?anat/"
            r"sub-(?P=participant)(?:_ses-[^/_]+)?" + _ENTITIES + r"_(?P<suffix>[A-Za-z0-9]+)"
        ),
    ),
    Layout(
        "BraTS 2021",  # BraTS2021_00000/BraTS2021_00000_t1.nii.gz, _t1ce, _t2, _flair, _seg
        _pattern(r"(?:.*/)?(?P<participant>BraTS2021_\d+)/(?P=participant)_(?P<suffix>t1ce|t1|t2|flair)"),
        skull_stripped=True,
        mask=(r"_[a-z0-9]+(\.nii(?:\.gz)?)$", r"_seg\1"),
    ),
    Layout(
        "BraTS 2023 and later",  # BraTS-GLI-00005-100/BraTS-GLI-00005-100-t1n.nii.gz, -t1c, -t2w, -t2f, -seg
        _pattern(r"(?:.*/)?(?P<participant>BraTS-(?!MEN-RT)[A-Z-]+-\d+)-(?P<session>\d+)-(?P<suffix>t1n|t1c|t2w|t2f)"),
        skull_stripped=True,
        mask=(r"-[a-z0-9]+(\.nii(?:\.gz)?)$", r"-seg\1"),
    ),
    Layout(
        "ADNI",  # 001_S_0001_bl.nii.gz, 001_S_0001_m12_T1w.nii.gz
        _pattern(
            r"(?:.*/)?(?:ADNI_?)?(?P<participant>\d{3}_S_\d{4,5})"
            r"(?:[-_](?:ses-)?(?P<session>bl|sc|scmri|init|[mvy]\d{1,3}|\d{8}|\d{4}-\d\d-\d\d))?"
            rf"(?:[-_](?P<suffix>(?i:{_NAMES})))?(?P<brain>[-_](?i:{_BRAIN}))?"
        ),
    ),
    Layout(
        "ADNI (LONI download)",  # …/ADNI_002_S_0295_MR_MP-RAGE__br_raw_20060418193713091_1_S13408_I13722.nii
        _pattern(
            r"(?:.*/)?ADNI_(?P<participant>\d{3}_S_\d{4,5})_MR_(?:.*[^A-Za-z])?(?P<suffix>(?i:MP-?RAGE|FLAIR))(?![A-Za-z]).*"
            r"_raw_(?P<session>\d{8})\d*_(?P<repeat>\d+)_S\d+_I\d+"
        ),
    ),
    Layout(
        "FOMO-60K",  # sub_1/ses_1/t1.nii.gz, t1_2.nii.gz
        _pattern(r"sub_(?P<participant>\d+)/ses_(?P<session>\d+)/(?P<suffix>[A-Za-z0-9]+?)(?:_(?P<repeat>\d+))?"),
        skull_stripped=True,
    ),
    Layout(
        "FOMO-60K (by source)",  # PT001_OASIS1/sub_1/ses_1/t1.nii.gz
        _pattern(
            r"(?P<source>PT\d+)_[^/]+/sub_(?P<participant>\d+)/ses_(?P<session>\d+)/"
            r"(?P<suffix>[A-Za-z0-9]+?)(?:_(?P<repeat>\d+))?"
        ),
        skull_stripped=True,
        person="{source}S{participant}",  # participants are numbered anew in each source
    ),
    Layout(
        "UK Biobank",  # 1000001_20252_2_0/T1/T1.nii.gz, T1_brain.nii.gz; the first digit after the field is the visit
        _pattern(
            r"(?:.*/)?(?P<participant>\d{7})_2025[23]_(?P<session>\d+)_(?P<repeat>[1-9]\d*)?0?/"
            r"(?P<suffix>T1|T2_FLAIR)/(?P=suffix)(?P<brain>_brain)?"
        ),
    ),
    Layout(
        "IXI",  # IXI002-Guys-0828-T1.nii.gz
        _pattern(r"(?:.*/)?(?P<participant>IXI\d+)-(?P<site>[A-Za-z]+)-\d+-(?P<suffix>[A-Za-z0-9]+)"),
        columns=("site",),
    ),
)


@dataclass(frozen=True)
class FlatFolder(Layout):
    """Files whose names are a person's ID, with or without a modality; in sub-folders too where ``nested``."""

    nested: bool = False

    def read(self, path: str) -> Found | None:
        if ("/" in path and not self.nested) or not_raw(path):
            return None
        match = self.pattern.fullmatch(re.sub("(?i)^sub-", "", stem_of(path)))
        assert match is not None
        person, suffix = match["participant"], match["suffix"] or ""
        if not suffix and (first := re.fullmatch(rf"(?i)(?P<suffix>{_EARLY})[-_. ](?P<rest>.+)", person)):
            person, suffix = first["rest"], first["suffix"]  # T1_001.nii.gz
        elif not suffix and (amid := re.fullmatch(rf"(?i)(.+?)[-_. ](?P<suffix>{_EARLY})([-_. ].+)", person)):
            person, suffix = amid[1] + amid[3], amid["suffix"]  # study_T1_001.nii.gz
        if not person and not self.nested:
            return None  # T1.nii.gz names nobody; below a person's folder it need not
        modality = MODALITY_OF[suffix.lower()] if suffix else "T1w"
        if modality == "T1w" and "_ce-" in match["entities"].lower():
            modality = "T1c"
        return Found(
            image=path,
            person=person,
            session=match["session"],
            modality=modality,
            mask=None,
            skull_stripped=bool(match["brain"] or match["brain_before"]),
            rank=(
                match["entities"].count("-") + sum(bool(match[n]) for n in ("brain", "brain_before", "repeat")),
                re.sub(r"\d+", lambda number: number[0].zfill(8), path),
            ),
            extra={},
        )


_EARLY = "|".join(name for name in sorted(MODALITY_OF, key=len, reverse=True) if name != "pd")  # PD_001: Parkinson's
FLAT = FlatFolder(
    "flat folder",  # anything.nii.gz, anything_T1w.nii.gz, sub-01_ses-1_FLAIR.nii, anything_T1w_brain.nii.gz
    re.compile(
        r"(?P<participant>[^/]*?)(?:_ses-(?P<session>[^/_]+))?"
        r"(?P<entities>(?:_(?:acq|ce|rec|run|part|echo|inv|flip)-[^/_]+)*)"
        rf"(?P<brain_before>(?:^|[-_. ])(?:{_BRAIN}))?(?:(?:^|[-_. ])(?P<suffix>{_NAMES}))?(?P<brain>[-_. ](?:{_BRAIN}))?"
        rf"(?P<repeat>(?:[-_. ](?:{'|'.join(AS_IT_CAME)}))*)",
        re.IGNORECASE,
    ),
)


def modality_of(name: str) -> str:
    """Return the modality that a file's name says at its end (sub-01_FLAIR.nii.gz, IXI002-T1.nii), "" where it says none."""
    match = re.fullmatch(rf".*[-_.](?P<suffix>{_NAMES})" + _EXTENSION, name, re.IGNORECASE)
    return MODALITY_OF[match["suffix"].lower()] if match else ""


def recognise(paths: Sequence[str]) -> Layout:
    """Return the layout that most paths follow; a flat folder if none is known or one reads twice as many as it does."""
    counts = [(sum(layout.read(path) is not None for path in paths), layout) for layout in LAYOUTS]
    count, layout = max(counts, key=lambda pair: pair[0])
    if count:
        flat = sum(FLAT.read(path) is not None for path in paths)
        return layout if 2 * count >= flat else FLAT
    return FLAT
