from __future__ import annotations

from pathlib import Path

import pytest

from neuromf.paper.torus import draw_torus
from neuromf.training import toy


def test_the_figure_is_drawn_from_the_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(toy, "SAMPLES", 50)
    toy.torus_experiment(tmp_path, updates=5, seed=0)
    draw_torus(tmp_path, tmp_path / "torus.png")
    assert (tmp_path / "torus.png").read_bytes().startswith(b"\x89PNG")
