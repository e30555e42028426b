"""The tidy tables of the evaluation: one row per figure (metrics) and one row per volume (scans), in mergeable parts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from neuromf.evaluation.inference import Estimate
from neuromf.tables import TableError, atomic_path, content_hash, read_json, write_json

METRIC_COLUMNS = (
    "release", "run", "seed", "nfe", "metric", "region", "extractor", "value", "ci_low", "ci_high", "n"
)  # fmt: skip
SCAN_COLUMNS = (
    "release", "run", "seed", "nfe", "split", "scan",
    "brain_ml", "csf_ml", "grey_ml", "white_ml", "deep_csf_ml",
    *(f"{which}_{name}" for which in ("nearest", "other") for name in (
        "scan", "mirrored", "correlation", "relative", "p", "relative_p",
        "scan_codec", "mirrored_codec", "distance_codec", "relative_codec", "p_codec", "relative_p_codec",
    )),
    "high_frequency_ratio", "sha256",
)  # fmt: skip
DIFFERENCE_COLUMNS = (
    "release", "run", "nfe", "other_run", "other_nfe", "seed", "metric", "region", "extractor",
    "difference", "ci_low", "ci_high", "n", "p", "p_holm",
)  # fmt: skip
SEED_TEST_COLUMNS = (
    "release", "nfe", "metric", "region", "extractor", "test", "run", "other_run", "n", "other_n",
    "value", "sd", "ci_low", "ci_high", "statistic", "df", "df_within", "p", "p_holm",
    "effect", "effect_low", "effect_high", "note",
)  # fmt: skip
SPECTRUM_COLUMNS = ("release", "run", "seed", "nfe", "spectrum", "cycles_per_mm", "value", "ci_low", "ci_high", "n")
REFERENCE_RUNS = ("real", "reconstruction", "linear_reconstruction", "noise")
NO_EXTRACTOR = "none"
_WHOLE = ("seed", "nfe", "other_nfe", "other_n")
_NUMBERS = (
    "value", "ci_low", "ci_high", "difference", "p", "p_holm", "sd", "statistic", "df", "df_within",
    "effect", "effect_low", "effect_high",
)  # fmt: skip


@dataclass(frozen=True)
class Part:
    """The figures of one run at one seed and NFE (both None for the real scans): what one job adds to the tables."""

    release: str
    run: str
    seed: int | None = None
    nfe: int | None = None
    metrics: list[dict[str, Any]] = field(default_factory=list)
    scans: list[dict[str, Any]] = field(default_factory=list)
    spectra: list[dict[str, Any]] = field(default_factory=list)

    def add(self, metric: str, region: str, estimate: Estimate, extractor: str = NO_EXTRACTOR) -> None:
        """Add one figure; ``region`` is the tissue or where in the volume it was taken."""
        value, low, high = estimate.value, estimate.low, estimate.high
        row = {
            "metric": metric,
            "region": region,
            "extractor": extractor,
            "value": value,
            "ci_low": low,
            "ci_high": high,
        }
        self.metrics.append(self._key() | row | {"n": estimate.n})

    def add_scan(self, scan: str, split: str, figures: dict[str, Any]) -> None:
        """Add one volume; ``figures`` are the further columns of the table of scans."""
        self.scans.append(self._key() | {"split": split, "scan": scan} | figures)

    def add_spectrum(self, spectrum: str, cycles_per_mm: Iterable[float], estimates: Sequence[Estimate]) -> None:
        """Add a figure per spatial frequency; ``spectrum`` is power or what it is relative to."""
        for k, one in zip(cycles_per_mm, estimates, strict=True):
            row = {"spectrum": spectrum, "cycles_per_mm": float(k), "value": one.value, "ci_low": one.low}
            self.spectra.append(self._key() | row | {"ci_high": one.high, "n": one.n})

    def _key(self) -> dict[str, Any]:
        return {"release": self.release, "run": self.run, "seed": self.seed, "nfe": self.nfe}


def write_parts(path: Path, parts: Sequence[Part], provenance: dict[str, Any]) -> None:
    """Write the parts that one job made as one JSON file, with their hash."""
    content = [asdict(part) for part in parts]
    write_json(path, {"provenance": provenance, "parts": content, "sha256": content_hash(content)})


def read_parts(path: Path) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Return what `write_parts` wrote: the parts, as mappings, and their provenance.

    Raises:
        TableError: the file is missing or damaged.
    """
    content = read_json(path, "provenance", "parts", "sha256")
    if content_hash(content["parts"]) != content["sha256"]:
        raise TableError(f"{path} is damaged: its figures are not what was written; remove it and run again")
    return content["parts"], content["provenance"]


def write_parquet(path: Path, rows: list[dict[str, Any]], columns: tuple[str, ...]) -> None:
    """Write one of the tables with its typed columns and a checksum of each page."""
    types = {column: kind for column in columns if (kind := _kind(column))}
    table = pd.DataFrame(rows, columns=list(columns)).astype(types)
    with atomic_path(path) as temporary:
        table.to_parquet(temporary, index=False, write_page_checksum=True)


def read_parquet(path: Path) -> pd.DataFrame:
    """Read a table that `write_parquet` wrote, comparing its checksums.

    Raises:
        TableError: the file is missing or damaged.
    """
    if not path.is_file():
        raise TableError(f"{path} does not exist; run the evaluation")
    try:
        return pd.read_parquet(path, page_checksum_verification=True)
    except Exception as error:  # damaged bytes raise anything: ArrowInvalid, OSError, KeyError, JSONDecodeError
        what = " ".join(str(error).split())[:200]
        raise TableError(f"{path} is damaged or no parquet ({what}); remove it and run again") from None


def _kind(column: str) -> str | None:
    """Return the type of a column that may be empty in every row; None for text and counts."""
    if column in _WHOLE:
        return "Int64"
    if "_mirrored" in column:
        return "boolean"
    number = ("_ml", "_correlation", "_relative", "_p", "_distance", "_ratio")
    return "float64" if column in _NUMBERS or column.removesuffix("_codec").endswith(number) else None
