"""Skull strip on real whole heads: Dice against FreeSurfer, brain volume, components, seconds and memory.

    python benchmarks/skull_strip.py --backend template --json skull_strip.json

The heads are those of the folder ``data`` in --shared (default: NEUROMF_SHARED, or ../shared beside the checkout). Two
references: FreeSurfer's brain mask (one subject) and its labels, closed by 8 mm and filled (three subjects).
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from neuromf.config import SkullStrip
from neuromf.preprocess.derivatives import mask_path
from neuromf.preprocess.skull_strip import skull_strip_shard
from neuromf.tables import Scan
from neuromf.volume import read_volume, to_ras

Mask = NDArray[np.bool_]
COLUMNS = (
    "scan",
    "backend",
    "brain_ml",
    "components",
    "dice_brainmask",
    "dice_labels",
    "seconds",
    "cpu_seconds",
    "reason",
)


def heads(shared: Path) -> Iterator[tuple[str, Path]]:
    """Yield name and path of each whole head."""
    data = shared / "data"
    for path in sorted((data / "freesurfer").glob("*_T1.nii.gz")):
        yield path.name.removesuffix("_T1.nii.gz"), path
    for folder in ("ds000011/sub-*/anat", "pumi"):
        for path in sorted(data.glob(f"{folder}/*_T1w.nii.gz")):
            yield f"{path.relative_to(data).parts[0]}/{path.name.removesuffix('_T1w.nii.gz')}", path


def references(head: Path) -> Iterator[tuple[str, Mask]]:
    """Yield the reference masks that lie beside a head, in RAS."""
    if not head.name.endswith("_T1.nii.gz"):
        return
    for column, kind in (("dice_brainmask", "brainmask"), ("dice_labels", "aseg")):
        path = head.with_name(head.name.replace("_T1.", f"_{kind}."))
        if path.is_file():
            mask = np.asarray(to_ras(read_volume(path)).dataobj) > 0
            yield column, closed(mask) if kind == "aseg" else mask


def closed(labels: Mask) -> Mask:
    padded = np.pad(labels, 10)
    grown = ndimage.distance_transform_edt(~padded) <= 8
    return ndimage.binary_fill_holes(ndimage.distance_transform_edt(grown) > 8)[10:-10, 10:-10, 10:-10]


def dice(a: Mask, b: Mask) -> float:
    return round(float(2 * (a & b).sum() / (a.sum() + b.sum())), 4)


def measure(name: str, head: Path, out: Path, settings: SkullStrip, threads: int, weights: Path) -> dict[str, Any]:
    """Strip one head through the function of the rule and compare it with its references."""
    scan = Scan("".join(c for c in name if c.isalnum()), None, head.name, "T1w")
    manifest = out / "manifests" / settings.backend / f"{scan.participant_id}.tsv"
    started, cpu = time.perf_counter(), time.process_time()
    (row,) = skull_strip_shard(
        [scan], head.parent, out, manifest, settings, code=str(started), workers=threads, weights_dir=weights
    )
    found = {
        "scan": name,
        "backend": settings.backend,
        "seconds": round(time.perf_counter() - started, 1),
        "cpu_seconds": round(time.process_time() - cpu, 1),  # what counts on a machine that does other work too
    }
    if not row.ok:
        return found | {"reason": row.reason}
    mask = np.asarray(read_volume(mask_path(manifest.parent / row.file)).dataobj) > 0
    compared = {column: dice(mask, truth) for column, truth in references(head)}
    return found | {"brain_ml": row.figures["brain_ml"], "components": int(ndimage.label(mask)[1])} | compared


def main() -> None:
    shared = os.environ.get("NEUROMF_SHARED", Path(__file__).parents[1].parent / "shared")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, default=Path(shared), help="folder with data/ and weights/")
    parser.add_argument("--backend", nargs="+", default=["template"], choices=["template", "mindgrab", "synthstrip"])
    parser.add_argument("--only", default="", help="only the scans whose name contains this")
    parser.add_argument("--threads", type=int, default=1, help="threads of the networks")
    parser.add_argument("--out", type=Path, default=Path("results/benchmarks/skull_strip"), help="where masks go")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    arguments = parser.parse_args()
    rows = []
    print("\t".join(COLUMNS))
    for backend in arguments.backend:
        for name, head in heads(arguments.shared):
            if arguments.only in name:
                settings = SkullStrip(backend=backend)
                weights = arguments.shared / "weights"
                rows.append(measure(name, head, arguments.out / backend, settings, arguments.threads, weights))
                print("\t".join(str(rows[-1].get(column, "")) for column in COLUMNS), flush=True)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"peak memory {peak:.2f} GiB")
    if arguments.json:
        arguments.json.write_text(json.dumps({"peak_gib": round(peak, 2), "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
