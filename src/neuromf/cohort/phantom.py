"""The demo cohort: phantom heads written as a BIDS data set, with their ground truth in its derivatives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch

from neuromf.cohort.phantom_head import LABELS, Head, Person, draw_person, make_head
from neuromf.config import Phantom
from neuromf.shards import Task, run_shard
from neuromf.tables import Cohort, ManifestRow, Scan, atomic_path, write_json, write_tsv
from neuromf.volume import write_volume

__all__ = ["Head", "Person", "draw_person", "make_head", "make_heads", "phantom_cohort", "write_dataset_files"]


def phantom_cohort(
    name: str, n: int, root: Path, settings: Phantom, *, prefix: str = "phantom", digits: int = 3
) -> Cohort:
    """Return the table of ``n`` phantom participants ``<prefix>001`` … with their ages and sexes."""
    scans = []
    for number in range(1, n + 1):
        participant = f"{prefix}{number:0{digits}d}"
        person = draw_person(settings, participant)
        extra = {"age": f"{person.age:.1f}", "sex": person.sex}
        scans.append(
            Scan(participant, None, f"sub-{participant}/anat/sub-{participant}_T1w.nii.gz", "T1w", extra=extra)
        )
    return Cohort(name, root, tuple(scans), source="phantom")


def make_heads(
    scans: Sequence[Scan], root: Path, settings: Phantom, manifest: Path, *, code: str, workers: int
) -> tuple[ManifestRow, ...]:
    """Write the heads of one shard under ``root`` and their ground truth under ``root/derivatives/truth``.

    A scan's own ``age`` and ``sex`` columns are used where the table has both, and are drawn otherwise. Scans with
    ``skull_stripped`` are written without skull.

    Returns:
        The shard manifest's rows; ``file`` is the head, the figures are age, sex and the true volumes in ml.
    """
    tasks = [_task(scan, root, settings) for scan in scans]
    return run_shard(
        tasks,
        _write_head,
        manifest,
        settings=settings.model_dump(mode="json"),
        code=code,
        workers=workers,
        label="phantom",
    )


def write_dataset_files(cohort: Cohort) -> None:
    """Write what makes the heads and their ground truth BIDS data sets: descriptions and participants.tsv."""
    about = {"Name": f"{cohort.name}: phantom heads of NeuroMF", "BIDSVersion": "1.9.0", "License": "CC0"}
    source = "ICBM 152 nonlinear 2009a symmetric, (c) 1993-2009 Louis Collins, McConnell Brain Imaging Centre"
    maker = [{"Name": "neuromf.cohort.phantom", "Description": "Heads synthesised from a template, no person's scan"}]
    write_json(
        cohort.root / "dataset_description.json",
        about | {"DatasetType": "raw", "GeneratedBy": maker, "Acknowledgements": source},
    )
    write_json(
        cohort.root / "derivatives" / "truth" / "dataset_description.json",
        about | {"DatasetType": "derivative", "GeneratedBy": maker},
    )
    people = {scan.participant_id: scan.extra for scan in cohort.scans}
    columns = list(dict.fromkeys(column for extra in people.values() for column in extra))
    rows = [[f"sub-{participant}", *(extra.get(c) for c in columns)] for participant, extra in people.items()]
    write_tsv(cohort.root / "participants.tsv", ["participant_id", *columns], rows)


def _task(scan: Scan, root: Path, settings: Phantom) -> Task:
    session = f"ses-{scan.session_id}" if scan.session_id else ""
    truth = root / "derivatives" / "truth" / f"sub-{scan.participant_id}" / session / "anat"
    stem = scan.scan_id.rsplit("_", 1)[0]
    outputs = [f"{stem}_desc-brain_mask.nii.gz", f"{stem}_dseg.nii.gz", f"{stem}_dseg.json"]
    arguments = {
        "settings": settings.model_dump(mode="json"),
        "participant_id": scan.participant_id,
        "age": scan.extra.get("age"),
        "sex": scan.extra.get("sex"),
        "stripped": scan.skull_stripped,
    }
    return Task(scan.scan_id, (), (root / scan.image, *(truth / name for name in outputs)), arguments)


def _write_head(
    inputs: Sequence[Path],
    outputs: Sequence[Path],
    *,
    settings: Mapping[str, Any],
    participant_id: str,
    age: str | None,
    sex: str | None,
    stripped: bool,
) -> dict[str, float | str]:
    torch.set_num_threads(1)
    person = Person(float(age), sex) if age is not None and sex is not None else None
    head = make_head(Phantom.model_validate(settings), participant_id, person=person, stripped=stripped)
    image, mask, labels, about = outputs
    write_volume(mask, head.mask, head.affine, np.uint8)
    write_volume(labels, head.labels, head.affine, np.uint8)
    facts: dict[str, float | str] = {"age": head.person.age, "sex": head.person.sex}
    facts |= {f"{tissue}_ml": volume for tissue, volume in head.volumes_ml.items()}
    write_json(about, {"labels": LABELS, **facts})
    _write_image(image, head)
    return facts


def _write_image(path: Path, head: Head) -> None:
    if head.storage == "scaled":
        scaled = nib.Nifti1Image(head.image, head.affine)
        scaled.set_data_dtype(np.int16)  # nibabel chooses scl_slope so that the range is used
        with atomic_path(path) as temporary:
            nib.save(scaled, temporary)
    else:
        largest = 255 if head.storage == "uint8" else np.inf
        write_volume(path, np.minimum(head.image, largest), head.affine, head.storage)
