"""Each check of the doctor finds what it is for and names the remedy."""

from __future__ import annotations

import sys
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nibabel as nib
import numpy as np
import psutil
import pytest
from builders import REPOSITORY, write_scan

from neuromf import doctor, environment, gpu, precision
from neuromf.doctor import Finding, Patient
from neuromf.planning.plan import Plan, PlanError
from neuromf.tables import (
    Cohort,
    ManifestRow,
    ReleaseRow,
    Scan,
    write_cohort,
    write_manifest,
    write_release,
)
from neuromf.training import memory
from neuromf.training.memory import TrainingMemory


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with three stripped scans of some 150 mm, a release of them and no results."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("NEUROMF_WEIGHTS", raising=False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    monkeypatch.setattr(gpu, "installed_gpus", lambda: ())
    for index in range(3):
        write_scan(tmp_path / "bids", f"p{index}", index)
    scans = tuple(
        Scan(f"p{i}", None, f"sub-p{i}/anat/sub-p{i}_T1w.nii.gz", "T1w", skull_stripped=True) for i in range(3)
    )
    write_cohort(Path("config/cohorts/study.tsv"), Cohort("study", tmp_path / "bids", scans))
    rows = [ReleaseRow(scan.participant_id, None, "T1w", "study", "train") for scan in scans]
    write_release(Path("config/releases/first.tsv"), rows)
    return tmp_path


def patient(*settings: str) -> Patient:
    settings = ("preset=smoke", "release=first", *settings)
    return Patient(REPOSITORY, settings, doctor.load_config(REPOSITORY, settings))


def only(findings: Any) -> Finding:
    (finding,) = findings
    return finding


def has(gibibytes: float, count: int = 1) -> Any:
    return lambda: tuple(gpu.Gpu(f"GPU-{n}", "NVIDIA X", int(gibibytes * 2**30)) for n in range(count))


def test_python(monkeypatch: pytest.MonkeyPatch) -> None:
    assert doctor.check_python().status == "ok"
    monkeypatch.setattr(sys, "version_info", (3, 9, 1))
    assert doctor.check_python().status == "blocker" and "3.11" in doctor.check_python().remedy


def test_a_checkout_in_a_folder_that_shells_take_apart_is_a_blocker() -> None:
    found = [finding for finding in islice(doctor.examine(Path("/data/12:30")), 3) if finding.check == "checkout"]
    assert [finding.status for finding in found] == ["blocker"] and "/data/12:30: " in found[0].found
    assert not [one for one in islice(doctor.examine(Path("/data/my study")), 3) if one.check == "checkout"]


def test_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lock = REPOSITORY / environment.LOCK
    installed = environment.locked_packages(lock)
    monkeypatch.setattr(environment, "installed_packages", lambda: installed)
    assert doctor.check_packages(lock).status == "ok"
    installed = installed | {"nibabel": "1.0"}
    found = doctor.check_packages(lock)
    assert found.status == "warning" and "nibabel 1.0 (locked: " in found.found and "make install" in found.remedy
    del installed["torch"]
    assert doctor.check_packages(lock) == Finding("packages", "blocker", "torch not installed", found.remedy)
    assert doctor.check_packages(tmp_path / "requirements.lock").status == "warning"


def test_device(monkeypatch: pytest.MonkeyPatch) -> None:
    assert only(doctor.check_device(patient("device=cpu"))).status == "ok"
    assert only(doctor.check_device(patient("device=cuda"))).status == "blocker"
    found = only(doctor.check_device(patient("device=auto")))
    assert found.status == "warning" and "32×32×32 voxels" in found.found
    monkeypatch.setattr(gpu, "installed_gpus", has(24, count=2))
    assert "gets one of its own" in only(doctor.check_device(patient("device=auto"))).found
    four = "train={devices: 4, batch_size: 8}"
    found = only(doctor.check_device(patient("device=auto", four)))
    assert found.status == "blocker" and found.remedy == "set train.devices: 2"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    assert "CUDA_VISIBLE_DEVICES is set" in only(doctor.check_device(patient("device=auto"))).found


def test_memory_of_the_device_against_that_of_a_training(monkeypatch: pytest.MonkeyPatch) -> None:
    counted = TrainingMemory(parameters=1_000_000, states=2**30, working=2 * 2**30)
    monkeypatch.setattr(memory, "training_memory", lambda config: counted)
    has_memory = {"total": 8 * 2**30}
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(**has_memory))
    found = only(doctor.check_memory(patient()))
    assert found.status == "ok" and "takes 6.0 GiB of 8.0 GiB in this machine" in found.found, "working memory twice"
    has_memory["total"] = 7 * 2**30
    assert only(doctor.check_memory(patient())).status == "warning"
    has_memory["total"] = 4 * 2**30
    found = only(doctor.check_memory(patient()))
    assert found.status == "blocker" and "train.batch_size" in found.remedy
    for gibibytes, status in ((8, "ok"), (4.5, "warning"), (3.5, "blocker")):
        monkeypatch.setattr(gpu, "installed_gpus", has(gibibytes))
        found = only(doctor.check_memory(patient("device=auto")))
        assert found.status == status and f"takes 4.0 GiB of {gibibytes:.1f} GiB on the GPU" in found.found, (
            "1 is CUDA's"
        )


def test_a_network_too_large_for_its_scans() -> None:
    found = only(doctor.check_memorisation(patient()))
    assert found.status == "warning" and "40,303 parameters for each of 3 training scans" in found.found
    assert "moderate" in found.found and found.remedy.endswith("{kind: block, kept: 0.5}")
    wide = 'network={"channels": [64, 128], "attention": [false, false], "head_channels": [0, 0], "residual_blocks": 1}'
    found = only(doctor.check_memorisation(patient(wide)))
    assert found.status == "warning" and "severe" in found.found and "{kind: block, kept: 0.25}" in found.remedy
    assert (
        only(doctor.check_memorisation(patient(wide, 'train={"loss_mask": {"kind": "block", "block": 2}}'))).status
        == "ok"
    )


def test_tables(project: Path) -> None:
    found = only(doctor.check_tables(patient()))
    assert (found.status, found.found) == ("ok", "release first: 3 scans (3 train, 0 val, 0 test) of study")
    (project / "bids").rename(project / "elsewhere")
    found = only(doctor.check_tables(patient()))
    assert found.status == "blocker" and str(project / "bids") in found.found and "`root`" in found.remedy


def test_folders(monkeypatch: pytest.MonkeyPatch) -> None:
    assert only(doctor.check_folders(patient())).status == "ok"
    assert not list(Path().glob(".doctor-*"))
    Path("results").write_text("a file in the way")
    found = only(doctor.check_folders(patient()))
    assert found.status == "blocker" and "results cannot be written to" in found.found


def test_weights(project: Path) -> None:
    codec = "codec={name: maisi, weights: autoencoder_v1.pt}"
    found = list(doctor.check_weights(patient(codec, "evaluate={segmenters: [subcortical]}", "weights_dir=weights")))
    assert [one.status for one in found] == ["blocker", "blocker", "warning"]
    assert "autoencoder_v1.pt" in found[0].found and "net_subcortical.safetensors" in found[1].found
    assert "LPIPS" in found[2].found
    (project / "weights").mkdir()
    (project / "weights" / "autoencoder_v1.pt").write_bytes(b"no codec")
    assert next(doctor.check_weights(patient(codec, "weights_dir=weights"))).status == "ok"
    named = f"codec={{name: maisi, weights: autoencoder_v1.pt, sha256: {'f' * 64}}}"
    found = list(doctor.check_weights(patient(named, "weights_dir=weights")))
    assert found[0].status == "blocker" and "fetch it again" in found[0].found


def test_scans_by_some_headers_and_by_the_rows_of_the_skull_strip(project: Path) -> None:
    assert only(doctor.check_scans(patient())).status == "ok"
    unknown, unfetched = (project / f"bids/sub-p{i}/anat/sub-p{i}_T1w.nii.gz" for i in (0, 1))
    image = nib.Nifti1Image(nib.load(unknown).get_fdata(), None)
    nib.save(image, unknown)
    unfetched.unlink()
    unfetched.symlink_to("../../.git/annex/objects/a/b/c/c")
    found = only(doctor.check_scans(patient()))
    assert (
        found.status == "warning"
        and "study: of 3 scans whose header was looked at, 1 cannot be used, 1 are" in found.found
    )
    assert "datalad get" in found.found and "orientation unknown" in found.found
    folder = project / "results/cohorts/study/preprocessed/manifests/skull_strip"
    folder.mkdir(parents=True)
    rows = [ManifestRow(f"s{i}", "ok", figures={"warning": "sheared by 5°" if i else ""}) for i in range(5)]
    write_manifest(folder / "shard-0000.tsv", [*rows, ManifestRow("s9", "failed", "it is text")])
    found = only(doctor.check_scans(patient()))
    assert (
        "of 6 scans stripped so far, 1 cannot be used, 4 are doubtful, such as s9: it is text; s1: sheared"
        in found.found
    )


def test_field_of_view_by_the_brains_of_stripped_scans() -> None:
    assert only(doctor.check_field_of_view(patient())).status == "ok"
    found = only(doctor.check_field_of_view(patient("preprocess={conform: {shape: [96, 128, 160], spacing_mm: 1.0}}")))
    assert (
        found.status == "warning"
        and "of 3 stripped scans looked at" in found.found
        and ", 3 (100%) lose more than 2%" in found.found
    )
    shape = [int(side) for side in found.remedy.split("[")[1].split("]")[0].split(",")]
    assert shape[0] > 128 and shape[1] > 160 and shape[2] >= 160 and all(side % 4 == 0 for side in shape)


def test_field_of_view_by_the_template_where_heads_are_whole(project: Path) -> None:
    table = project / "config/cohorts/study.tsv"
    table.write_text(table.read_text().replace("true", "false"))
    found = only(doctor.check_field_of_view(patient("preprocess={conform: {shape: [128, 128, 128], spacing_mm: 1.0}}")))
    assert found.status == "warning" and "ICBM152" in found.found
    assert only(doctor.check_field_of_view(patient())).status == "ok"


def test_field_of_view_by_what_was_conformed_to_the_grid_of_now(project: Path) -> None:
    folder = project / "results/cohorts/study/preprocessed/manifests/conform"
    folder.mkdir(parents=True)
    image = nib.Nifti1Image(np.random.default_rng(0).random((32, 32, 32), np.float32), np.diag([6.0, 6.0, 6.0, 1.0]))
    nib.save(image, folder / "volume.nii.gz")
    rows = [
        ManifestRow(f"s{number}", "ok", file="volume.nii.gz", figures={"cut_fraction": share})
        for number, share in enumerate((0.0, 0.01, 0.05, 0.2))
    ]
    write_manifest(folder / "shard-0000.tsv", rows)
    found = only(doctor.check_field_of_view(patient()))
    assert found.status == "warning" and "of 4 scans conformed so far, 2 (50%) lose more than 2%" in found.found
    other = only(doctor.check_field_of_view(patient("preprocess={conform: {shape: [32, 32, 32], spacing_mm: 8.0}}")))
    assert "stripped scans" in other.found, "the volumes lie on another grid"


def test_disk_against_the_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[str]] = []

    class Planned(Plan):
        bytes = 3 * 2**30  # type: ignore[assignment]

    def plan(arguments: list[str], refusal: str = "") -> Plan:
        asked.append(arguments)
        return Planned(call=None, lines=(), refusal=refusal)  # type: ignore[arg-type]

    monkeypatch.setattr(doctor, "make_plan", plan)
    free = iter([100, 3.5, 2])
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: type("Usage", (), {"free": next(free) * 2**30})())
    found = [only(doctor.check_disk(patient())) for _ in range(3)]
    assert [one.status for one in found] == ["ok", "warning", "blocker"]
    assert found[2].found.startswith("2.0 GiB free, 3.0 GiB expected") and "free space" in found[2].remedy
    assert asked[0] == ["--snakefile", str(REPOSITORY / "Snakefile"), "--config", "preset=smoke", "release=first"]


def test_a_call_that_snakemake_refuses_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(arguments: list[str]) -> Plan:
        raise PlanError("Building\nTableError in file x, line 3:\nrow 4 was removed\n  File y")

    monkeypatch.setattr(doctor, "make_plan", refuse)
    found = only(doctor.check_disk(patient()))
    assert found.status == "blocker"
    assert found.found == "snakemake refuses: TableError in file x, line 3: row 4 was removed"


def test_a_configuration_that_is_not_valid_is_a_blocker_and_the_last_word() -> None:
    found = list(doctor.examine(REPOSITORY, ["preset=smok"]))
    assert found[-1].check == "configuration" and found[-1].status == "blocker"
    assert "did you mean 'smoke'" in found[-1].found
    assert "write key=value" in list(doctor.examine(REPOSITORY, ["smoke"]))[-1].found


def test_a_check_that_cannot_be_made_is_a_blocker_of_its_own(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "check_memory", lambda patient: iter(()))
    monkeypatch.setattr(doctor, "check_disk", lambda patient: iter(()))
    (project / "config/releases/first.tsv").unlink()
    found = {one.check: one for one in doctor.examine(REPOSITORY, ["preset=smoke", "release=first"])}
    assert found["tables"].status == "blocker" and "first.tsv does not exist" in found["tables"].found
    assert found["folders"].status == "ok"


def test_a_finding_is_a_line_with_its_remedy_below() -> None:
    assert str(Finding("device", "ok", "two GPUs")) == "ok       device: two GPUs"
    assert str(Finding("device", "warning", "none", "buy one")).splitlines()[1].strip() == "→ buy one"


def test_runs_of_the_command_line_are_added_to_the_files_as_snakemake_does(project: Path) -> None:
    (project / "config/config.yaml").write_text("runs: {meanflow: {}, other: {train: {updates: 5}}}")
    assert list(doctor.load_config(REPOSITORY, ["runs={third: {}}"]).runs) == ["meanflow", "other", "third"]


def test_the_disk_that_results_lie_on_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Path] = []
    monkeypatch.setattr(doctor, "make_plan", lambda arguments: Plan(call=None, lines=(), refusal=""))  # type: ignore[arg-type]
    usage = SimpleNamespace(free=2**40)
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: asked.append(Path(path)) or usage)
    (tmp_path / "elsewhere").mkdir()
    Path("results").symlink_to(tmp_path / "elsewhere")
    list(doctor.check_disk(patient()))
    assert asked == [tmp_path / "elsewhere"]


def test_processes_of_a_training_share_the_machines_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    counted = TrainingMemory(parameters=1_000_000, states=2**30, working=2 * 2**30)
    monkeypatch.setattr(memory, "training_memory", lambda config: counted)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(total=8 * 2**30))
    found = only(doctor.check_memory(patient("train={devices: 2, batch_size: 4}")))
    assert found.status == "blocker" and "takes 12.0 GiB" in found.found


def test_a_missing_synthseg_blocks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("FREESURFER_HOME", raising=False)
    found = list(doctor.check_weights(patient("evaluate={segmenters: [synthseg]}")))
    assert any(one.status == "blocker" and "mri_synthseg" in one.found for one in found)


def test_precision_that_the_processor_has_no_kernels_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "_has_bf16_kernels", lambda: False)
    named = list(doctor.check_precision(patient("train={precision: bf16}", "codec_training={precision: bf16}")))
    warned = [finding for finding in named if finding.status == "warning"]
    assert [finding.found.split(",")[0] for finding in warned] == [
        "codec_training.precision: bf16",
        "train.precision: bf16 (run meanflow)",
    ]
    assert all("30 times as long" in one.found and one.remedy == "set it to auto or 32" for one in warned)
    chosen = list(doctor.check_precision(patient("train={precision: auto}")))
    assert {one.status for one in chosen} == {"ok"} and "trains in float32" in chosen[0].found
    monkeypatch.setattr(gpu, "installed_gpus", lambda: has(80)())
    chosen = list(doctor.check_precision(patient("train={precision: auto}", "device=auto")))
    assert "trains in bf16" in chosen[0].found
