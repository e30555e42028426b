"""The codec gate: a flow is trained only on latents of a codec that keeps what a brain scan shows.

The figures are means over held-out scans, inside the brain; an interval (bootstrap over scans) stands beside each, and
the mean alone decides. A figure that could not be measured warns and never passes silently.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from neuromf.codec.validate import PERCEPTUAL
from neuromf.config import CodecGate, Evaluate
from neuromf.evaluation.inference import Estimate, mean_estimate
from neuromf.tables import read_json, write_tsv

log = logging.getLogger(__name__)

COLUMNS = ("figure", "mean", "ci_low", "ci_high", "n", "threshold", "verdict")


class CodecGateError(ValueError):
    """A codec that no flow should be trained on; the message is the table of its figures."""


@dataclass(frozen=True)
class Check:
    """One figure of the codec's validation beside its threshold."""

    figure: str
    estimate: Estimate
    threshold: float
    at_least: bool  # the threshold is the smallest value that passes; else the largest

    @property
    def verdict(self) -> str:
        """passed | failed | not measured."""
        value = self.estimate.value
        if value is None:
            return "not measured"
        passed = value >= self.threshold if self.at_least else value <= self.threshold
        return "passed" if passed else "failed"

    def cells(self) -> list[Any]:
        """Return the row of the gate's table."""
        bound = f"{'≥' if self.at_least else '≤'} {self.threshold:g}"
        value = self.estimate
        return [self.figure, value.value, value.low, value.high, value.n, bound, self.verdict]


def check_codec(validation: Path, gate: CodecGate, settings: Evaluate, out: Path) -> list[Check]:
    """Compare a codec's validation with the gate's thresholds and write the table to ``out`` (TSV).

    Args:
        validation: JSON of `neuromf.codec.validate.validate_codec`.
        settings: of the intervals.

    Raises:
        CodecGateError: a figure misses its threshold and ``gate.action`` is stop; ``out`` is then not written.
    """
    content = read_json(validation)
    rows = [row for row in content["rows"] if row["codec"] == "vae"]
    found = checks(rows, gate, settings)
    table = f"codec {content['codec']} on {len(rows)} held-out scans, inside the brain:\n{as_text(found)}"
    if any(check.verdict == "failed" for check in found):
        if gate.action == "stop":
            raise CodecGateError(
                f"{table}\nNo flow is trained on this codec: take better weights (docs/codec.md), lower codec_gate's"
                f" thresholds, or set codec_gate.action: warn. Its worst scans are pictured (rule codec_picture)."
            )
        log.warning("%s\nTraining goes on, codec_gate.action is warn; no sample can look better than the codec", table)
    elif any(check.verdict == "not measured" for check in found):
        log.warning("%s\nWhat was not measured was not checked; LPIPS needs weights (docs/codec.md)", table)
    else:
        log.info("%s", table)
    write_tsv(out, COLUMNS, [check.cells() for check in found])
    return found


def checks(rows: list[dict[str, Any]], gate: CodecGate, settings: Evaluate) -> list[Check]:
    """Return the gate's checks of a codec's rows, one per scan."""
    limits = [("ssim_brain", gate.ssim, True), ("psnr_brain", gate.psnr_db, True)]
    limits += [(plane, gate.lpips, False) for plane in PERCEPTUAL]
    return [Check(name, _mean(rows, name, settings), limit, at_least) for name, limit, at_least in limits]


def _mean(rows: list[dict[str, Any]], name: str, settings: Evaluate) -> Estimate:
    values = [row[name] for row in rows if row[name] is not None]
    return mean_estimate(values, settings) if len(values) == len(rows) else Estimate(None, None, None, len(values))


def as_text(found: list[Check]) -> str:
    """Return the table as lines of text for the terminal."""
    lines = [f"  {'figure':<16}{'mean':>8}  {'interval':<19}{'n':>4}  {'threshold':<10} verdict"]
    for check in found:
        value, low, high = (
            "–" if v is None else f"{v:.3f}" for v in (check.estimate.value, check.estimate.low, check.estimate.high)
        )
        bound = check.cells()[5]
        interval = "–" if check.estimate.low is None else f"{low} to {high}"
        lines.append(
            f"  {check.figure:<16}{value:>8}  {interval:<19}{check.estimate.n:>4}  {bound:<10} {check.verdict}"
        )
    return "\n".join(lines)
