"""What a change costs: which jobs a finished run would do again, and which it would not."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from builders import RUNS, Project, write_scan

SETTINGS = {"preset": "smoke", "release": "first", "runs": RUNS, "max_failed_fraction": 0.5}
PREPROCESSING = {"skull_strip", "bias_correct", "conform"}
TRAINING = {"train", "sample", "decode"}
EVALUATION = {"evaluate_reference", "evaluate_samples", "evaluate_noise", "metrics", "spectra"}


@pytest.fixture
def configured(project):
    """The project, whose settings are put back after the test."""
    yield project
    project.configure(**SETTINGS)


@pytest.fixture
def checkout(project, tmp_path) -> Project:
    """The project with a fresh checkout of NeuroMF, which a test may edit."""
    return project.with_checkout(tmp_path / "checkout")


def edit(project: Project, path: str, old: str, new: str) -> None:
    file = project.repository / path
    text = file.read_text()
    assert text.count(old) == 1, (path, old)
    file.write_text(text.replace(old, new))


def test_a_fresh_checkout_and_touched_inputs_cost_nothing(checkout):
    for path in (checkout.folder / "config").rglob("*"):
        path.touch()
    assert checkout.planned() == {}


def test_comments_docstrings_and_formatting_cost_nothing(checkout):
    for path in (checkout.repository / "src" / "neuromf").rglob("*.py"):
        path.write_text(f"# a comment\n{path.read_text()}\n\n# another\n")
    for path in (checkout.repository / "workflow_scripts").glob("*.py"):
        path.write_text(f"# a comment\n{path.read_text()}")
    edit(checkout, "src/neuromf/preprocess/conform.py", '"""Conform the volume ', '"""Bring to the grid the volume ')
    assert checkout.planned() == {}


def test_an_edit_inside_a_stage_costs_that_stage_and_what_follows(checkout):
    edit(checkout, "src/neuromf/preprocess/conform.py", "_MARGIN = 8 ", "_MARGIN = 9 ")
    planned = set(checkout.planned())
    assert {"conform", "encode", "latent_statistics", "report"} | TRAINING | EVALUATION <= planned
    assert not {"skull_strip", "bias_correct"} & planned


def test_an_edit_of_the_evaluation_costs_evaluation_and_report(checkout):
    edit(checkout, "src/neuromf/evaluation/ms_ssim.py", "_C1, _C2 = 0.01**2, ", "_C1, _C2 = 0.02**2, ")
    planned = set(checkout.planned())
    assert {"evaluate_reference", "evaluate_samples", "metrics", "report"} <= planned
    assert not (PREPROCESSING | TRAINING | {"encode", "latent_statistics", "codec_gate"}) & planned


def test_an_edit_of_a_script_costs_its_rule(checkout):
    edit(checkout, "workflow_scripts/spectrum_picture.py", "k0=snakemake.params.k0", "k0=float(snakemake.params.k0)")
    assert set(checkout.planned()) == {"spectrum_picture"} | {"all"}


def test_settings_that_change_no_result_cost_nothing(configured):
    backwards = dict(reversed(SETTINGS.items()))
    (configured.folder / "config" / "config.yaml").write_text(yaml.safe_dump(backwards, sort_keys=False))
    assert configured.planned() == {}
    configured.configure(
        **SETTINGS, device="cpu", train={"keep_checkpoints": 3, "log_every": 2}, sample={"batch_size": 1}
    )
    assert configured.planned() == {}
    assert configured.planned("--cores", "1") == {}


def test_a_training_rate_costs_training_and_what_follows(configured):
    configured.configure(**SETTINGS, train={"learning_rate": 0.01})
    planned = configured.planned()
    assert planned["train"] == 2 and {"sample", "decode", "evaluate_samples", "report"} <= set(planned)
    assert not (PREPROCESSING | {"encode", "latent_statistics", "evaluate_reference", "codec_gate"}) & set(planned)


@pytest.mark.parametrize(
    ("gate", "strict"),
    [("check_failures", {"max_failed_fraction": 0.05}), ("codec_gate", {"codec_gate": {"action": "stop"}})],
)
def test_a_gate_that_failed_and_passes_again_costs_no_training(configured, gate, strict):
    """Snakemake deletes the table of a gate that fails, and what asks for a table that is not there would be made again."""
    configured.configure(**SETTINGS | strict)
    failed = configured.snakemake(check=False)
    assert failed.returncode == 1 and f"{gate}: " in failed.stderr
    assert gate in configured.planned(), "a gate that failed is not taken for passed"
    configured.configure(**SETTINGS)
    planned = set(configured.planned())
    assert gate in planned and not (PREPROCESSING | TRAINING | EVALUATION | {"encode", "latent_statistics"}) & planned
    configured.snakemake()
    assert configured.planned() == {}


def test_another_shard_size_is_refused(configured):
    configured.configure(**SETTINGS, shard_size=4)
    done = configured.snakemake("--dry-run", check=False)
    assert done.returncode == 1 and "set shard_size: 8" in done.stdout + done.stderr


def test_a_new_setting_that_no_job_asks_for_costs_the_report(checkout):
    """Its declaration is no code of the trainings, which read the same class."""
    old = '    device: Literal["auto", "cpu", "cuda"] = setting('
    edit(checkout, "src/neuromf/config.py", old, f'    unheard_of: int = setting(3, "Of no rule")\n{old}')
    assert set(checkout.planned()) == {"report", "all"}, "which shows all settings"


def test_a_new_release_trains_on_cached_latents(configured):
    created = configured.neuromf("release", "create", "second", "--cohort", "study", "--fractions", "0.6", "0.2", "0.2")
    assert created.returncode == 0, created.stderr
    configured.configure(**SETTINGS | {"release": "second"})
    planned = configured.planned()
    assert planned["train"] == 2 and not (PREPROCESSING | {"encode"}) & set(planned)


def stamps(folder: Path) -> dict[str, int]:
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in folder.rglob("*.nii.gz")}


def test_a_lost_file_costs_its_own_scan(project):
    """Nothing that follows is made again either: what the file held comes out the same."""
    folder = project.folder / "results/cohorts/study/preprocessed"
    lost = folder / "sub-p03/anat/sub-p03_desc-preproc_T1w.nii.gz"
    before, content = stamps(folder), lost.read_bytes()
    models = {
        path: path.stat().st_mtime_ns for path in (project.folder / "results/releases").rglob("model.safetensors")
    }
    lost.unlink()
    planned = project.planned()
    assert planned["conform"] == 1 and not ({"skull_strip", "bias_correct"} | TRAINING | EVALUATION) & set(planned)
    done = project.snakemake()
    assert "sub-p03_desc-preproc_T1w.nii.gz is gone" in done.stdout + done.stderr
    assert lost.read_bytes() == content
    after = stamps(folder)
    mask = lost.with_name(lost.name.replace(".nii.gz", "_mask.nii.gz"))
    assert {name for name in after if after[name] != before[name]} == {str(p.relative_to(folder)) for p in (lost, mask)}
    assert {path: path.stat().st_mtime_ns for path in models} == models
    assert project.planned() == {}


def test_new_scans_cost_their_shards_only(project):
    """The last tests of the module: they grow the cohort. Shards hold eight scans; there are nineteen."""
    bids = project.folder / "bids"
    for count, name in enumerate(("new00", "new01")):
        write_scan(bids, name, 50 + count)
    indexed = project.neuromf("index", str(bids), "--cohort", "study", "--skull-stripped")
    assert indexed.returncode == 0, indexed.stderr
    per_shard = {"skull_strip", "bias_correct", "conform", "encode"}
    planned = project.planned("encode_all")
    assert {rule: count for rule, count in planned.items() if rule in per_shard} == dict.fromkeys(per_shard, 1)
    assert not (TRAINING | {"latent_statistics"} | EVALUATION) & set(project.planned())


def test_a_new_shard_leaves_the_others_alone(project):
    bids = project.folder / "bids"
    for index in range(2, 6):
        write_scan(bids, f"new{index:02d}", 50 + index)
    project.neuromf("index", str(bids), "--cohort", "study", "--skull-stripped")
    planned = project.planned("encode_all")
    assert planned["encode"] == planned["skull_strip"] == 2, "the third shard is filled, the fourth is new"
