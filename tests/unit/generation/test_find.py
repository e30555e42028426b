"""A model's name that is none is told with the nearest one."""

from __future__ import annotations

from pathlib import Path

import pytest

from neuromf.generation.find import check_model
from neuromf.training.checkpoint import CheckpointError


def test_models_that_are_there_pass_and_the_nearest_of_others_is_told(tmp_path: Path) -> None:
    check_model("demo", tmp_path)
    check_model("demo/rectified_flow/averages/online.safetensors", tmp_path)
    folder = tmp_path / "releases/first/runs/meanflow/seed-0"
    folder.mkdir(parents=True)
    for name in ("model.json", "model.safetensors"):
        (folder / name).touch()
    check_model(str(folder), tmp_path)
    with pytest.raises(CheckpointError, match="no model 'dmeo': .*did you mean 'demo'") as error:
        check_model("dmeo", tmp_path)
    assert "\n" not in str(error.value)
    with pytest.raises(CheckpointError, match=r"did you mean '.*meanflow/seed-0'"):
        check_model(str(folder).replace("meanflow", "meanfolw"), tmp_path)
