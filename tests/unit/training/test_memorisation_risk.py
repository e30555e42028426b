from __future__ import annotations

import pytest

from neuromf.config import Config
from neuromf.training.memorisation_risk import memorisation_risk, parameters_of


@pytest.mark.parametrize(
    ("scans", "level", "kept"),
    [(990, "severe", 0.25), (5_000, "moderate", 0.5), (10_000, "low", None), (50_000, "low", None)],
)
def test_the_reviews_table(scans: int, level: str, kept: float | None) -> None:
    """178 million parameters on cohorts of the four sizes that the review of the first full run speaks of."""
    risk = memorisation_risk(178_000_000, scans)
    assert risk.level == level and (risk.advice.kept if risk.advice else None) == kept
    assert risk.ratio == pytest.approx(178e6 / scans)


def test_parameters_of_the_published_network() -> None:
    assert 171e6 < parameters_of(Config()) < 180.5e6
