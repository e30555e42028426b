"""How public data sets name their files: one regular expression each, on a file's path below the data set's folder."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

MODALITIES = {
    "T1w": ("t1w", "t1", "t1n", "mprage"),
    "FLAIR": ("flair", "t2_flair", "t2flair"),
    "T2w": ("t2w", "t2"),
    "PDw": ("pdw", "pd"),
    "T1c": ("t1ce", "t1c", "t1gd"),  # with contrast agent
}
_MODALITY_OF = {name: modality for modality, names in MODALITIES.items() for name in names}
_NAMES = "|".join(sorted(_MODALITY_OF, key=len, reverse=True))
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
    rejected: re.Pattern[str] = field(default=re.compile(r"(?!)"))

    def read(self, path: str) -> Found | None:
        """Return what a path says, or None if it is no scan of this layout. No file is looked at."""
        match = self.pattern.fullmatch(path)
        if match is None or self.rejected.search(path):
            return None
        groups = {key: value or "" for key, value in match.groupdict().items()}
        suffix, entities = groups.get("suffix", ""), groups.get("entities", "")
        modality = _MODALITY_OF.get(suffix.lower(), suffix) or "T1w"
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
FLAT = Layout(
    "flat folder",  # anything.nii.gz, anything_T1w.nii.gz, sub-01_ses-1_FLAIR.nii
    re.compile(
        r"(?:sub-)?(?P<participant>[^/]+?)(?:_ses-(?P<session>[^/_]+))?(?P<entities>(?:_(?:acq|ce|rec|run)-[^/_]+)*)"
        rf"(?:[-_.](?P<suffix>{_NAMES}))?\.nii(?:\.gz)?",
        re.IGNORECASE,
    ),
    rejected=re.compile(r"(?:mask|seg|labels?|aparc|lesion|bold|dwi|dti|adc|asl|swi|mra)\.nii", re.IGNORECASE),
)


def modality_of(name: str) -> str:
    """Return the modality that a file's name says at its end (sub-01_FLAIR.nii.gz, IXI002-T1.nii), "" where it says none."""
    match = re.fullmatch(rf".*[-_.](?P<suffix>{_NAMES})" + _EXTENSION, name, re.IGNORECASE)
    return _MODALITY_OF[match["suffix"].lower()] if match else ""


def recognise(paths: Sequence[str]) -> Layout:
    """Return the layout that most paths follow; a flat folder if none is known."""
    counts = [(sum(layout.read(path) is not None for path in paths), layout) for layout in LAYOUTS]
    count, layout = max(counts, key=lambda pair: pair[0])
    return layout if count else FLAT
