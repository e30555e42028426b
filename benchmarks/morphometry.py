"""Segmenters against FreeSurfer's aseg on real heads: Dice, volumes in ml and seconds per structure and subject.

    python benchmarks/morphometry.py --segmenter subcortical --json morphometry.json

The heads are those of data/freesurfer in --shared (default: NEUROMF_SHARED, or ../shared beside the checkout), the
weights those of its folder weights. --stripped sets what is no brain to zero first, as preprocessing does.
"""

from __future__ import annotations

import argparse
import os
import resource
import time
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.processing import resample_from_to
from scipy import ndimage

from neuromf.evaluation.morphometry.atlas import Atlas
from neuromf.evaluation.morphometry.backends import find_segmenter
from neuromf.evaluation.morphometry.compare import asymmetry, dice
from neuromf.tables import write_json
from neuromf.volume import read_volume

# FreeSurferColorLUT.txt: left and right
ASEG = {
    "cerebral_white_matter": (2, 41),
    "cerebral_cortex": (3, 42),
    "lateral_ventricle": (4, 43),
    "inferior_lateral_ventricle": (5, 44),
    "cerebellum_white_matter": (7, 46),
    "cerebellum_cortex": (8, 47),
    "cerebellum": (8, 47),
    "thalamus": (10, 49),
    "thalamus_proper": (10, 49),
    "caudate": (11, 50),
    "putamen": (12, 51),
    "pallidum": (13, 52),
    "3rd_ventricle": (14,),
    "4th_ventricle": (15,),
    "brain_stem": (16,),
    "hippocampus": (17, 53),
    "amygdala": (18, 54),
    "csf": (24,),
    "accumbens_area": (26, 58),
    "ventraldc": (28, 60),
    "ventricle": (4, 5, 14, 15, 43, 44),
    "corpus_callosum": (251, 252, 253, 254, 255),
}


def measure(head: Path, segmenter: str, weights: Path, stripped: bool) -> list[dict[str, Any]]:
    """Return one row per structure that the segmenter and aseg share."""
    truth = read_volume(head.with_name(head.name.replace("_T1.", "_aseg.")))
    image = read_volume(head)
    if stripped:
        brain = ndimage.binary_dilation(np.asarray(truth.dataobj) > 0, iterations=2)
        image = nib.Nifti1Image(np.asarray(image.dataobj) * ndimage.binary_fill_holes(brain), image.affine)
    backend = find_segmenter(segmenter, weights)
    started, cpu = time.perf_counter(), time.process_time()
    found = backend.compute(image)
    seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
    labels = np.asarray(found.labels.dataobj)
    aseg = np.rint(np.asarray(resample_from_to(truth, found.labels, order=0).dataobj)).astype(int)
    rows = []
    for region, known in shared_regions(backend.atlas).items():
        left_right = [float((aseg == label).sum()) / 1000 for label in ASEG[region][:2]]
        row = {
            "scan": head.name.removesuffix("_T1.nii.gz"),
            "region": region,
            "dice": round(dice(np.isin(labels, known), np.isin(aseg, ASEG[region])), 3),
            "ml": round(found.volumes[region], 2),
            "aseg_ml": round(float(np.isin(aseg, ASEG[region]).sum()) / 1000, 2),
        }
        if region in found.sides:
            row |= {
                "asymmetry": round(float(asymmetry(found.sides[region])), 3),
                "aseg_asymmetry": round(float(asymmetry(left_right)), 3),
            }
        rows.append(row | {"seconds": round(seconds, 1), "cpu_seconds": round(cpu, 1)})
    return rows


def shared_regions(atlas: Atlas) -> dict[str, tuple[int, ...]]:
    return {region: known for region, known in atlas.regions.items() if region in ASEG and known}


def main() -> None:
    shared = os.environ.get("NEUROMF_SHARED", Path(__file__).parents[1].parent / "shared")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, default=Path(shared), help="folder with data/ and weights/")
    parser.add_argument("--segmenter", default="subcortical", choices=["subcortical", "aparc50", "synthseg"])
    parser.add_argument("--only", default="", help="only the scans whose name contains this")
    parser.add_argument("--stripped", action="store_true", help="without skull and scalp")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    arguments = parser.parse_args()
    rows: list[dict[str, Any]] = []
    print(f"{'scan':<16}{'region':<28}{'Dice':>6}{'ml':>9}{'aseg':>9}{'ratio':>7}{'asym.':>8}{'aseg':>8}")
    for head in sorted((arguments.shared / "data/freesurfer").glob("*_T1.nii.gz")):
        if arguments.only not in head.name:
            continue
        for row in measure(head, arguments.segmenter, arguments.shared / "weights", arguments.stripped):
            ratio = row["ml"] / row["aseg_ml"] if row["aseg_ml"] else float("nan")
            sides = f"{row['asymmetry']:>8.3f}{row['aseg_asymmetry']:>8.3f}" if "asymmetry" in row else ""
            figures = f"{row['dice']:>6.3f}{row['ml']:>9.2f}{row['aseg_ml']:>9.2f}{ratio:>7.2f}"
            print(f"{row['scan']:<16}{row['region']:<28}{figures}{sides}", flush=True)
            rows.append(row)
        print(f"{rows[-1]['scan']:<16}{rows[-1]['seconds']} s, {rows[-1]['cpu_seconds']} CPU s", flush=True)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"peak memory {peak:.2f} GiB")
    if arguments.json:
        write_json(arguments.json, {"segmenter": arguments.segmenter, "peak_gib": round(peak, 2), "rows": rows})


if __name__ == "__main__":
    main()
