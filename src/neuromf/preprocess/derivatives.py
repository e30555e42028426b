"""The BIDS derivatives tree that the preprocessing stages write: where files lie and how a stage follows another."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import nibabel as nib

from neuromf import __version__
from neuromf.shards import ShardError, Task
from neuromf.tables import Scan, TableError, read_manifest, write_json
from neuromf.volume import VolumeError, read_volume


def volume_path(folder: Path, scan: Scan, description: str) -> Path:
    """Return ``folder/sub-<id>/[ses-<s>/]anat/sub-<id>[_ses-<s>]_desc-<description>_<modality>.nii.gz``."""
    session = (f"ses-{scan.session_id}",) if scan.session_id else ()
    return folder.joinpath(f"sub-{scan.participant_id}", *session, "anat", scan.volume_name(description))


def mask_path(volume: Path) -> Path:
    """Return the path of the brain mask that belongs to a volume of the tree."""
    return volume.with_name(volume.name.removesuffix(".nii.gz") + "_mask.nii.gz")


def read_mask(path: Path) -> nib.Nifti1Image:
    """Read the brain mask that the skull strip wrote.

    Raises:
        ShardError: it is gone or damaged: no fault of the scan, which would be left out for good.
    """
    try:
        return read_volume(path)
    except VolumeError as error:
        volume = path.with_name(path.name.replace("_mask.nii.gz", ".nii.gz"))
        raise ShardError(
            f"{error}. It is the brain mask of {volume}: remove both and run again, the workflow makes them anew"
        ) from None


def following_tasks(
    scans: Sequence[Scan],
    upstream: Path,
    folder: Path,
    description: str,
    outputs: Sequence[str],
) -> list[Task]:
    """Return the tasks of a stage that reads the volumes of ``upstream``'s manifest and the brain masks.

    Inputs of a task are the upstream volume and its mask from the skull strip; outputs are the files in ``outputs``
    ("volume", "mask") of ``desc-<description>``. A scan that failed upstream keeps its reason.

    Raises:
        TableError: a scan has no row in the manifest.
    """
    rows = {row.scan_id: row for row in read_manifest(upstream)}
    tasks = []
    for scan in scans:
        row = rows.get(scan.scan_id)
        if row is None:
            raise TableError(f"{upstream} has no row for {scan.scan_id}; run its stage again for this shard")
        volume = volume_path(folder, scan, description)
        made = {"volume": volume, "mask": mask_path(volume)}
        inputs = (upstream.parent / row.file, mask_path(volume_path(folder, scan, "brain"))) if row.ok else ()
        tasks.append(
            Task(
                scan.scan_id,
                inputs,
                tuple(made[o] for o in outputs),
                failed_upstream="" if row.ok else row.reason,
                made=row if row.ok else None,
            )
        )
    return tasks


def describe(folder: Path, cohort_root: Path) -> None:
    """Write ``dataset_description.json`` of the derivatives tree."""
    write_json(
        folder / "dataset_description.json",
        {
            "Name": "NeuroMF preprocessing",
            "BIDSVersion": "1.10.0",
            "DatasetType": "derivative",
            "GeneratedBy": [{"Name": "neuromf", "Version": __version__}],
            "SourceDatasets": [{"URL": str(cohort_root)}],
        },
    )
