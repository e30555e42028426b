"""Finished models: refused, moved away, never written over."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from neuromf.planning.jobs import Job, Kind
from neuromf.planning.retraining import RetrainingError, keep_replaced, refusal

RUN = Path("results/releases/first/runs/meanflow")
STAMP = Path("results/releases/first/.made_from/train-meanflow-0")


def training(run: str = "meanflow", rule: str = "train", why: Kind = "setting", upstream: str = "new") -> Job:
    folder = f"results/releases/first/runs/{run}/seed-0"
    stamp = f"results/releases/first/.made_from/train-{run}-0"
    wildcards = {"run": run, "seed": "0"}
    detail = "train.learning_rate 1 → 2"
    return Job(rule, wildcards, 1, "", f"{folder}/model.safetensors", stamp, upstream, why, detail)


def finish(weights: bytes = b"weights") -> None:
    (RUN / "seed-0" / "averages").mkdir(parents=True, exist_ok=True)
    (RUN / "seed-0" / "model.safetensors").write_bytes(weights)
    (RUN / "seed-0" / "averages" / "0.1.safetensors").write_bytes(b"average")
    STAMP.parent.mkdir(exist_ok=True)
    STAMP.write_text("made from")


@pytest.fixture(autouse=True)
def in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_a_finished_model_is_not_trained_again_unasked() -> None:
    finish()
    with pytest.raises(RetrainingError) as refused:
        keep_replaced([training(), training("rectified_flow")], allowed=["rectified_flow"])
    said = str(refused.value)
    assert "run meanflow, seed 0 (setting: train.learning_rate 1 → 2)" in said and "run rectified_flow" not in said
    assert "--config 'retrain=[meanflow,rectified_flow]'" in said
    assert (RUN / "seed-0" / "model.safetensors").read_bytes() == b"weights" and STAMP.is_file()


def test_where_it_is_asked_for_the_old_model_is_kept_under_its_hash() -> None:
    finish()
    (kept,) = keep_replaced([training()], allowed=["meanflow"])
    assert kept == RUN / "replaced" / f"seed-0-{hashlib.sha256(b'weights').hexdigest()[:12]}"
    assert (kept / "model.safetensors").read_bytes() == b"weights"
    assert (kept / "averages" / "0.1.safetensors").read_bytes() == b"average"
    assert not (RUN / "seed-0").exists()


def test_an_interrupted_training_goes_on_without_asking_again() -> None:
    finish()
    keep_replaced([training()], allowed=["meanflow"])
    (RUN / "seed-0").mkdir()
    assert keep_replaced([training()], allowed=[]) == []
    assert (RUN / "seed-0").is_dir()


def test_a_training_killed_at_its_very_end_goes_on_unless_something_has_changed() -> None:
    finish()
    for why in ("interrupted", "new"):  # new: the next call deleted its outputs and was killed, too
        killed = training(why=why, upstream="made from")
        assert keep_replaced([killed], allowed=[]) == [] and STAMP.is_file()
        with pytest.raises(RetrainingError):
            keep_replaced([training(why=why, upstream="made from another")], allowed=[])
    with pytest.raises(RetrainingError):
        keep_replaced([training(why="missing file", upstream="made from")], allowed=[])


def test_the_same_weights_twice_are_kept_twice() -> None:
    kept = []
    for _ in range(3):
        finish()
        kept += keep_replaced([training()], allowed=["meanflow"])
    assert len({path.name for path in kept}) == 3 and all(path.is_dir() for path in kept)


def test_first_trainings_and_other_rules_are_nobodys_business() -> None:
    assert keep_replaced([training()], allowed=[]) == []
    finish()
    assert keep_replaced([training(rule="sample")], allowed=[]) == []


def test_a_model_whose_folder_is_gone_is_asked_about_too(tmp_path: Path) -> None:
    STAMP.parent.mkdir(parents=True)
    STAMP.write_text("made from")
    assert "run meanflow, seed 0" in refusal([training()], [], tmp_path)
    assert keep_replaced([training()], allowed=["meanflow"]) == [] and not STAMP.exists()
