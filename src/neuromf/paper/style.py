"""One look for every figure: colours that colour-blind readers tell apart (Okabe & Ito 2008), on a light or dark page."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

REFERENCE_GREY = "#8a8f98"
NOISE_COLOUR = "#CC79A7"
RECONSTRUCTION_COLOUR = "#E69F00"
_RUN_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#56B4E9", "#F0E442", "#E69F00")
_LABELS = {
    "real": "real scans",
    "reconstruction": "codec reconstruction",
    "linear_reconstruction": "linear codec",
    "noise": "decoded noise",
}


@dataclass(frozen=True)
class Theme:
    """Colours of a page."""

    name: str
    background: str
    ink: str
    grid: str


LIGHT = Theme("light", "#ffffff", "#1f2933", "#e4e7eb")
DARK = Theme("dark", "#171b21", "#e4e7eb", "#333a44")


def run_label(run: str) -> str:
    """Return how a run is called in figures and tables."""
    return _LABELS.get(run, run.replace("_", " "))


def run_colours(runs: Sequence[str]) -> dict[str, str]:
    """Return one colour per trained run (in their order; it repeats after six) and those of the references."""
    colours = {run: _RUN_COLOURS[i % len(_RUN_COLOURS)] for i, run in enumerate(runs)}
    return colours | {
        "real": REFERENCE_GREY,
        "reconstruction": RECONSTRUCTION_COLOUR,
        "linear_reconstruction": REFERENCE_GREY,
        "noise": NOISE_COLOUR,
    }


@contextmanager
def themed(theme: Theme) -> Iterator[None]:
    """Let figures that are made and saved within the block have the theme's colours."""
    settings: dict[str, Any] = {
        "font.family": "sans-serif",
        "font.size": 10,
        "axes.titlesize": 11,
        "axes.titleweight": "bold",
        "axes.titlelocation": "left",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.axisbelow": True,
        "legend.frameon": False,
        "lines.linewidth": 1.8,
        "figure.constrained_layout.use": True,
        "figure.facecolor": theme.background,
        "savefig.facecolor": theme.background,
        "axes.facecolor": theme.background,
        "axes.edgecolor": theme.ink,
        "axes.labelcolor": theme.ink,
        "text.color": theme.ink,
        "xtick.color": theme.ink,
        "ytick.color": theme.ink,
        "grid.color": theme.grid,
        "svg.hashsalt": "neuromf",  # the same figure gives the same file
    }
    with mpl.rc_context(settings):  # type: ignore[arg-type]
        yield


def as_svg(figure: Figure) -> bytes:
    """Return a figure as SVG without a date."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()


def as_png(figure: Figure, dpi: int = 160) -> bytes:
    """Return a figure as PNG."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi, metadata={"Software": None})
    return buffer.getvalue()
