"""What the words of a file's name say: the modality, whether the brain was cut out, and whether it is no raw scan at all."""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import PurePosixPath

MODALITIES = {
    "T1w": ("t1w", "t1", "t1n", "mprage"),
    "FLAIR": ("flair", "t2_flair", "t2flair", "t2f"),
    "T2w": ("t2w", "t2"),
    "PDw": ("pdw", "pd"),
    "T1c": ("t1ce", "t1c", "t1gd", "t1gad", "t1_ce", "t1_gd", "t1_gad", "t1w_ce", "t1w_gd"),  # with contrast agent
}
MODALITY_OF = {name: modality for modality, names in MODALITIES.items() for name in names}
STRIPPED = (
    "brain", "bet", "betted", "hdbet", "stripped", "skullstripped", "skull-stripped", "skull_stripped", "skullstrip",
    "noskull", "deskulled", "synthstrip", "synthstripped", "brainextracted", "brainextractionbrain",
)  # fmt: skip
AS_IT_CAME = ("defaced", "deface", "anon", "anonymized", "anonymised", "raw", "orig", "original", "native")

_MASK, _TISSUE, _DERIVED, _OTHER = "a mask or label map", "a tissue map", "a derived image", "another modality"
_WORDS = {  # of a name, in lower case → what they tell
    _MASK: r".*(?:mask|seg|segmentation|segmented|parc|labels?|labelmap|lesions?|rois?|annot)s?|ribbon|filled|atlas|gtv",
    _TISSUE: r"pve\w*|mixeltype|prob\w*|.*posteriors?\d*|[gw]m|csf|gr[ae]y|white|(?:gr[ae]y|white)matter|tissues?",
    _DERIVED: (
        r"(?:.*\d)?n[34](?:itk|bfc|corr\w*)?|bias\w*|debias\w*|restored?|nu|norm|normali[sz]ed|corr(?:ected)?|nuc?|"
        r"(?:to|2|in|on)?(?:mni\w*|icbm\w*|tal|talairach|std|standard|template)|t[12]w?2std|"
        r"(?:inverse)?warp(?:ed|field)?|reg(?:istered)?|coreg\w*|aligned|resampled?|reslice[d]?|conform(?:ed)?|affine|"
        r"flirt|fnirt|\d+(?:p\d+)?mm|downsampled|preproc(?:essed)?|processed|smooth(?:ed)?|jacobian\w*|deform\w*|"
        r"displacement|thickness|corticalthickness|average|brainextraction\w*|extractedbrain\w*|brainsegmentation\w*"
    ),
    _OTHER: (
        r"cta?|ctp|pet|fdg|pib|av45|spect|datscan|bold|fmri|rsfmri|rest|func|epi|sbref|dwi|dti|dki|noddi|adc|fa|md|rd|trace|"
        r"b0|b\d{3,4}|p?c?asl|m0scan|cbf|cbv|mtt|pwi|dsc|dce|swi|qsm|phase|fieldmap|fmap|mra|mrv|tof|angio|mtr|mrs|"
        r"t2star|t2s|t[12]map|t1rho|megre|gre|localizer|scout|inv[12]|ultrasound|xray"
    ),
}
_KINDS = tuple((kind, re.compile(words)) for kind, words in _WORDS.items())
_GLUED = re.compile(r".*(?:mask|seg|labels?|aparc|lesion|bold|dwi|dti|adc|asl|swi|mra)", re.IGNORECASE)
_ENTITY = re.compile(r"(?:^|_)(?P<key>[A-Za-z]+)-(?P<value>[^_/]+)")
_FILE_COPY = re.compile(r"(?i)[-_ ](?:copy|kopie|copie|copia)(?:[-_ ]?\d+)?$|\s?\(\d+\)$|^(?:copy of|kopie von) ")
_DERIVATIVE_ENTITIES = ("space", "desc", "label", "res", "den", "hemi", "atlas", "seg", "from", "mode", "stat", "trans")
# What SPM, CAT12 and FreeSurfer put before a scan's name: surely theirs, or where the name without it is there too.
_SURE_PREFIX = re.compile(
    r"(?:s\d*)?m\d?w[pc][0-6]|(?:s\d*)?wc[1-6]|r[pc][1-6]|wp[0-6]|wj_|i?y_|BiasField_|u_rc|[lr]h\.|cat_|catROI"
)
_PREFIX = re.compile(r"[cp][0-6]|wmi?|mi|[wrmsau]|mr|rw|sw|swr|swm|wr")


def stem_of(path: str) -> str:
    """Return a file's name without .nii or .nii.gz."""
    return re.sub(r"\.nii(\.gz)?$", "", PurePosixPath(path).name, flags=re.IGNORECASE)


def not_raw(path: str, stems: Collection[tuple[str, str]] = ()) -> str:
    """Return why a file is no raw structural scan by its name, or "".

    Args:
        stems: (folder, name without ending) of all files, to know a copy with a prefix from a person of that name.
    """
    stem = stem_of(path)
    if _FILE_COPY.search(stem):
        return "a copy of a file by its name"
    return derivative(stem) or _by_words(stem) or _by_prefix(path, stem, stems)


def derivative(stem: str) -> str:
    """Return why BIDS entities make a name no raw scan's, or ""."""
    for entity in _ENTITY.finditer(stem):
        key, value = entity["key"].lower(), entity["value"].lower()
        if key == "part" and value in ("phase", "real", "imag"):
            return f"no magnitude image (part-{value})"
        if key in _DERIVATIVE_ENTITIES:
            return f"a derivative ({key}-…): derivatives are no raw scans"
    return ""


def _by_words(stem: str) -> str:
    plain = re.sub(r"(?i)(?:^|_)(?:acq|run|rec|ce|echo|part|inv|flip|dir|mod)-[^_]+", "_", stem)
    words = [word for word in re.split(r"[_\-.\s+()]+", plain.lower()) if word]
    for place, word in reversed(list(enumerate(words))):
        kind = next((kind for kind, known in _KINDS if known.fullmatch(word)), "")
        if not kind and word in STRIPPED and not all(_is_known(after) for after in words[place:]):
            kind = _DERIVED  # a brain that was worked on
        if kind and _is_told(words, place, kind):
            return f"{kind} ({word.upper() if kind == _OTHER else word})"
    return f"{_MASK} ({words[-1]})" if words and _GLUED.fullmatch(words[-1]) else ""


def _is_told(words: list[str], place: int, kind: str) -> bool:
    """Return whether a word says what the image is. In ct_0012 or mysite_ct_0012 it may be part of a person's ID."""
    if place == 0:
        return len(words) == 1 or (kind == _TISSUE and all(re.fullmatch(r"\d{1,2}", word) for word in words[1:]))
    if any(re.search(r"\d", word) for word in words[:place]):
        return True  # the ID came before it
    return not any(re.fullmatch(r"[a-z]*\d{3,7}|[a-z]+\d{2}", word) for word in words[place + 1 :])


def _is_known(word: str) -> bool:
    return word in STRIPPED or word in AS_IT_CAME or word in MODALITY_OF


def _by_prefix(path: str, stem: str, stems: Collection[tuple[str, str]]) -> str:
    if sure := _SURE_PREFIX.match(stem):
        return f"{_DERIVED} ({sure[0]}… of SPM, CAT12 or FreeSurfer)"
    folder = PurePosixPath(path).parent
    for length in range(1, 4):
        prefix, rest = stem[:length], stem[length:]
        there = rest.startswith("sub-") or any((str(place), rest) in stems for place in (folder, folder.parent))
        if _PREFIX.fullmatch(prefix) and there:
            return f"{_DERIVED} ({prefix}… of a scan that is there)"
    return ""
