"""The regions that the segmenters tell apart: names, label values, which of them have two sides, and their tissues.

Sources: for `subcortical` and `aparc50` the class order of the colormaps published with the networks
(colormap_tissue_subcortical.json and colormap_aparc50.json, https://github.com/neuroneural/brainchop-models); checked
by overlap with FreeSurfer's aseg of three subjects, of one for `aparc50` without its cortex (benchmarks/morphometry.py). For
`synthseg` FreeSurfer's label values (FreeSurferColorLUT.txt) and the names in the header of `mri_synthseg --vol`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Atlas:
    """Regions and their label values; ``paired`` have a left and a right side.

    ``tissues`` says which regions make up grey matter, white matter and cerebrospinal fluid (csf).
    """

    regions: Mapping[str, tuple[int, ...]]
    paired: tuple[str, ...]
    tissues: Mapping[str, tuple[str, ...]]


# published order: the class is the position
SUBCORTICAL_CLASSES = (
    "Unknown", "Cerebral-White-Matter", "Cerebral-Cortex", "Lateral-Ventricle", "Inferior-Lateral-Ventricle",
    "Cerebellum-White-Matter", "Cerebellum-Cortex", "Thalamus", "Caudate", "Putamen", "Pallidum", "3rd-Ventricle",
    "4th-Ventricle", "Brain-Stem", "Hippocampus", "Amygdala", "Accumbens-area", "VentralDC",
)  # fmt: skip
APARC50_CLASSES = (
    "BG", "Cerebral-White-Matter", "Ventricle", "Cerebellum-White-Matter", "Cerebellum", "Thalamus-Proper*", "Caudate",
    "Putamen", "Pallidum", "Brain-Stem", "Hippocampus", "Amygdala", "CSF", "Accumbens-area", "VentralDC",
    "Corpus callosum", "ctx-bankssts", "ctx-caudalanteriorcingulate", "ctx-caudalmiddlefrontal", "ctx-cuneus",
    "ctx-entorhinal", "ctx-fusiform", "ctx-inferiorparietal", "ctx-inferiortemporal", "ctx-isthmuscingulate",
    "ctx-lateraloccipital", "ctx-lateralorbitofrontal", "ctx-lingual", "ctx-medialorbitofrontal", "ctx-middletemporal",
    "ctx-parahippocampal", "ctx-paracentral", "ctx-parsopercularis", "ctx-parsorbitalis", "ctx-parstriangularis",
    "ctx-pericalcarine", "ctx-postcentral", "ctx-posteriorcingulate", "ctx-precentral", "ctx-precuneus",
    "ctx-rostralanteriorcingulate", "ctx-rostralmiddlefrontal", "ctx-superiorfrontal", "ctx-superiorparietal",
    "ctx-superiortemporal", "ctx-supramarginal", "ctx-frontalpole", "ctx-temporalpole", "ctx-transversetemporal",
    "ctx-insula",
)  # fmt: skip
SYNTHSEG_PAIRED = {
    "cerebral white matter": (2, 41), "cerebral cortex": (3, 42), "lateral ventricle": (4, 43),
    "inferior lateral ventricle": (5, 44), "cerebellum white matter": (7, 46), "cerebellum cortex": (8, 47),
    "thalamus": (10, 49), "caudate": (11, 50), "putamen": (12, 51), "pallidum": (13, 52), "hippocampus": (17, 53),
    "amygdala": (18, 54), "accumbens area": (26, 58), "ventral DC": (28, 60),
}  # fmt: skip
SYNTHSEG_MIDLINE = {
    "total intracranial": (), "3rd ventricle": (14,), "4th ventricle": (15,), "brain-stem": (16,), "csf": (24,)
}  # fmt: skip

_MIDLINE = {"3rd_ventricle", "4th_ventricle", "ventricle", "brain_stem", "csf", "corpus_callosum"}
_DEEP_GREY = (
    "thalamus", "thalamus_proper", "caudate", "putamen", "pallidum", "hippocampus", "amygdala", "accumbens_area"
)  # fmt: skip
# brain stem and ventral diencephalon are mixed and belong to none
_GREY = ("cerebral_cortex", "cerebellum_cortex", "cerebellum", *_DEEP_GREY)
_WHITE = ("cerebral_white_matter", "cerebellum_white_matter", "corpus_callosum")
_CSF = ("lateral_ventricle", "inferior_lateral_ventricle", "3rd_ventricle", "4th_ventricle", "ventricle", "csf")


def region_name(published: str) -> str:
    """Return a published name in lower case with underscores: ``3rd-Ventricle`` → ``3rd_ventricle``."""
    return re.sub(r"[^a-z0-9]+", "_", published.lower()).strip("_")


def _atlas(regions: Mapping[str, tuple[int, ...]], paired: Sequence[str]) -> Atlas:
    grey = [name for name in regions if name in _GREY or name.startswith("ctx_")]
    white, csf = ([name for name in regions if name in tissue] for tissue in (_WHITE, _CSF))
    return Atlas(regions, tuple(paired), {"grey": tuple(grey), "white": tuple(white), "csf": tuple(csf)})


def _of_classes(classes: Sequence[str]) -> Atlas:
    regions = {region_name(name): (label,) for label, name in enumerate(classes) if label}
    return _atlas(regions, [name for name in regions if name not in _MIDLINE])


SUBCORTICAL = _of_classes(SUBCORTICAL_CLASSES)
APARC50 = _of_classes(APARC50_CLASSES)
SYNTHSEG = _atlas(
    {region_name(name): labels for name, labels in (SYNTHSEG_MIDLINE | SYNTHSEG_PAIRED).items()},
    [region_name(name) for name in SYNTHSEG_PAIRED],
)
# what the segmenters by intensity tell apart; deep_csf is the fluid that stands in for the ventricles
TISSUE_MAP = Atlas(
    {"brain": (1, 2, 3, 4), "csf": (1, 4), "grey": (2,), "white": (3,), "deep_csf": (4,)},
    ("csf", "grey", "white"),
    {"grey": ("grey",), "white": ("white",), "csf": ("csf",)},
)
