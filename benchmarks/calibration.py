"""Does the evaluation see what it should, and nothing else? Real scans against real scans, whole and spoilt.

    python benchmarks/calibration.py --scans ../shared/data/ds002748 --weights ../shared/weights --json calibration.json

Null: the scans are divided at random into two halves, again and again (and into thirds for copies: training scans, held-out
scans, samples). Counted is how often a figure's interval excludes the value that it has between two groups of one
population: 0 or 1 where that is known, otherwise the mean over the divisions.

Spoilt: one half is blurred, made noisy, brightened, made to lose modes (fewer and fewer distinct scans), or mixed with
copies of training scans, a little noisy so that no file is the same, by growing amounts; shown is the mean of each
figure over a few divisions, whether it grows or falls at every step, and whether that is so in all figures that are meant
to see it (`MEANT`).
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage, stats
from tqdm import tqdm

from neuromf.codec.maisi import load_codec
from neuromf.config import Codec, Evaluate
from neuromf.evaluation.copies import add_search, search_training
from neuromf.evaluation.distances import compare_rows
from neuromf.evaluation.extractors.registry import CODEC, Extractor, load_extractor
from neuromf.evaluation.features import array_sha256, cached_regions, gather
from neuromf.evaluation.folders import common_rules, survey, volume_files, volumes
from neuromf.evaluation.measure import add_volume_comparison
from neuromf.evaluation.ms_ssim import diversity
from neuromf.evaluation.rows import Part
from neuromf.evaluation.scans import Grid, ScanSet, describe, join
from neuromf.evaluation.spectrum import add_spectrum
from neuromf.tables import write_json

Volume = NDArray[np.float32]
Figures = dict[tuple[str, str, str], dict[str, Any]]  # metric, region, extractor → row
BRAIN = 0.05  # of the range: what is brightened
KNOWN_NULLS = {"kernel_distance": 0.0, "gaussian_mmd": 0.0, "cohens_d": 0.0, "high_frequency_to_real": 1.0}
LEVELS = {  # how → amounts, from none
    "blur, σ in voxels": (0.0, 0.5, 1.0, 2.0),
    "noise, σ in parts of the range": (0.0, 0.02, 0.05, 0.1),
    "brightness added": (0.0, 0.03, 0.06, 0.12),
    "distinct scans kept": (1.0, 0.5, 0.25, 0.1),
    "share of copies": (0.0, 0.25, 0.5, 1.0),
}
MEANT = {  # how → metric: which way it must go, in every region of every extractor
    "blur, σ in voxels": {"high_frequency_to_real": "↓", "kernel_distance": "↑", "frechet_distance": "↑"},
    "noise, σ in parts of the range": {"high_frequency_to_real": "↑", "kernel_distance": "↑", "frechet_distance": "↑"},
    "brightness added": {"kernel_distance": "↑", "frechet_distance": "↑", "gaussian_mmd": "↑"},
    "distinct scans kept": {"recall": "↓", "frechet_distance": "↑", "ms_ssim": "↑"},
    "share of copies": {"closer_to_training_than_null_closest": "↑"},
}
SPOILT = {"blur, σ in voxels", "noise, σ in parts of the range", "brightness added"}


class Scans:
    """Real scans on one grid in [0, 1], and the descriptions of them and of their spoilt versions, made when asked for."""

    def __init__(self, folder: Path, spacing_mm: float, extractors: Sequence[Extractor], cache: Path) -> None:
        found = survey(volume_files(folder), cache, label="scans")
        rules = common_rules({"scans": found}, spacing_mm=spacing_mm, intensity="percentile")
        self.volumes = [volume for _, volume in volumes(found, rules, label="scans: on one grid")]
        self.grid: Grid = rules.grid
        self.extractors, self.cache = extractors, cache
        self._known: dict[tuple[int, str, float], ScanSet] = {}

    def __len__(self) -> int:
        return len(self.volumes)

    def spoilt(self, index: int, how: str = "", amount: float = 0.0) -> Volume:
        return (
            spoil(self.volumes[index], how, amount, np.random.default_rng([7, index]))
            if amount
            else self.volumes[index]
        )

    def described(self, indices: Sequence[int], how: str = "", amount: float = 0.0) -> ScanSet:
        return join(self._describe(int(index), how if amount else "", amount) for index in indices)

    def _describe(self, index: int, how: str, amount: float) -> ScanSet:
        key = (index, how, amount)
        if key not in self._known:
            volume = self.spoilt(index, how, amount)
            sha256 = array_sha256(volume)
            self._known[key] = describe(f"{index}", volume, sha256, self.extractors, self.cache, self.grid)
        return self._known[key]


def spoil(volume: Volume, how: str, amount: float, random: np.random.Generator) -> Volume:
    """Return a volume (X, Y, Z) in [0, 1] with some of its quality lost."""
    if how.startswith("blur"):
        return ndimage.gaussian_filter(volume, amount)
    if how.startswith("noise"):
        return (volume + random.normal(0, amount, volume.shape) * (volume > BRAIN)).clip(0, 1).astype(np.float32)
    if how.startswith("brightness"):
        return (volume + np.float32(amount) * (volume > BRAIN)).clip(0, 1)
    raise ValueError(how)


def figures(synthetic: ScanSet, real: ScanSet, scans: Scans, settings: Evaluate) -> Figures:
    """Return all figures of one group of volumes beside another that need no training set."""
    part = Part("calibration", "synthetic")
    for extractor in scans.extractors:
        for region in cached_regions(scans.cache, extractor, real.hashes[0]):
            x, y = (gather(scans.cache, extractor, one.hashes, region) for one in (synthetic, real))
            for metric, estimate in compare_rows(x, y, settings).items():
                part.add(metric, region, estimate, extractor.name)
    add_volume_comparison(part, synthetic, real, settings)
    add_spectrum(part, synthetic.spectra, scans.grid.shape, scans.grid.voxel_mm, settings, {"real": real.spectra})
    return {(row["metric"], row["region"], row["extractor"]): row for row in part.metrics}


def copies(synthetic: ScanSet, held_out: ScanSet, train: ScanSet, settings: Evaluate) -> Figures:
    """Return the figures of the search for copies."""
    part = Part("calibration", "synthetic")
    add_search(part, search_training(synthetic, train, held_out), settings)
    return {(row["metric"], row["region"], row["extractor"]): row for row in part.metrics}


def null(scans: Scans, divisions: int, settings: Evaluate) -> list[dict[str, Any]]:
    """Return one row per figure: how often its interval excludes the null value over random divisions of the scans."""
    found: list[Figures] = []
    for division in tqdm(range(divisions), desc="null"):
        order = np.random.default_rng([1, division]).permutation(len(scans))
        halves, thirds = np.array_split(order, 2), np.array_split(order, 3)
        one = figures(scans.described(halves[0]), scans.described(halves[1]), scans, settings)
        shares = copies(*(scans.described(third) for third in thirds), settings)
        found.append(
            one | {key: row for key, row in shares.items() if "closer" in key[0]}
        )  # the rest depends on the thirds
    rows = []
    for key in found[0]:
        values = [one[key] for one in found if one[key]["ci_low"] is not None]
        if not values:
            continue
        expected = KNOWN_NULLS.get(key[0], float(np.mean([row["value"] for row in values])))
        excluded = sum(not row["ci_low"] - 1e-12 <= expected <= row["ci_high"] + 1e-12 for row in values)
        rows.append(dict(zip(("metric", "region", "extractor"), key, strict=True)) | {
            "null": expected, "known": key[0] in KNOWN_NULLS, "mean": float(np.mean([row["value"] for row in values])),
            "excluded": excluded, "divisions": len(values),
        })  # fmt: skip
    return rows


def sensitivity(scans: Scans, divisions: int, settings: Evaluate) -> list[dict[str, Any]]:
    """Return one row per way to spoil, amount and figure: its mean over divisions of the scans."""
    rows = []
    for how, amounts in LEVELS.items():
        for amount in tqdm(amounts, desc=how):
            found = [_spoilt(scans, division, how, amount, settings) for division in range(divisions)]
            for key in found[0]:
                values = [one[key]["value"] for one in found if one[key]["value"] is not None]
                if values:
                    row = dict(zip(("metric", "region", "extractor"), key, strict=True))
                    rows.append({"how": how, "amount": amount} | row | {"value": float(np.mean(values))})
    return rows


def _spoilt(scans: Scans, division: int, how: str, amount: float, settings: Evaluate) -> Figures:
    order = np.random.default_rng([2, division]).permutation(len(scans))
    if how == "share of copies":
        train, held_out, samples = np.array_split(order, 3)
        count = round(amount * len(samples))
        honest = [scans.described([index]) for index in samples[count:]]
        copied = [scans.described([index], "noise, slight", 0.02) for index in train[:count]]
        return copies(join(honest + copied), scans.described(held_out), scans.described(train), settings)
    real, synthetic = np.array_split(order, 2)
    if how in SPOILT:
        return figures(scans.described(synthetic, how, amount), scans.described(real), scans, settings)
    kept = np.resize(synthetic[: max(1, round(amount * len(synthetic)))], len(synthetic))
    found = figures(scans.described(kept), scans.described(real), scans, settings)
    part = Part("calibration", "synthetic")
    part.add("ms_ssim", "volume", diversity(len(kept), lambda i: scans.volumes[int(kept[i])], settings))
    return found | {("ms_ssim", "volume", "none"): part.metrics[0]}


def trend(values: Sequence[float]) -> str:
    """Return ↑ or ↓ where the values rise or fall at every step, otherwise ~."""
    steps = np.diff(values)
    return "↑" if (steps > 0).all() else "↓" if (steps < 0).all() else "~"


def print_null(rows: Sequence[Mapping[str, Any]]) -> None:
    allowed = {n: int(stats.binom.ppf(0.95, n, 0.05)) for n in {row["divisions"] for row in rows}}
    print("metric\tregion\textractor\tnull\tmean\texcluded\tdivisions")
    for row in rows:
        more = " more than 5 % allows" if row["excluded"] > allowed[row["divisions"]] else ""
        known = "" if row["known"] else " (mean)"
        print(
            f"{row['metric']}\t{row['region']}\t{row['extractor']}\t{row['null']:.3g}{known}\t{row['mean']:.3g}"
            f"\t{row['excluded']}\t{row['divisions']}{more}"
        )


def print_sensitivity(rows: Sequence[Mapping[str, Any]]) -> None:
    print("how\tmetric\tregion\textractor\tvalues\ttrend\tas meant")
    for how, amounts in LEVELS.items():
        series: dict[tuple[str, str, str], list[float]] = {}
        for row in rows:
            if row["how"] == how:
                series.setdefault((row["metric"], row["region"], row["extractor"]), []).append(row["value"])
        for key, values in series.items():
            if len(values) == len(amounts):
                meant = MEANT[how].get(key[0])
                verdict = "" if meant is None else "yes" if trend(values) == meant else "no"
                shown = ", ".join(f"{value:.3g}" for value in values)
                print("\t".join([how, *key, shown, trend(values), verdict]))


def main() -> None:
    shared = Path(os.environ.get("NEUROMF_SHARED", "../shared"))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scans", type=Path, default=shared / "data/ds002748", help="folder of skull-stripped scans")
    parser.add_argument("--weights", type=Path, default=shared / "weights")
    parser.add_argument("--extractor", nargs="+", default=["codec", "squeezenet"])
    parser.add_argument("--spacing", type=float, default=3.0, help="mm")
    parser.add_argument("--divisions", type=int, default=50, help="of the null")
    parser.add_argument("--spoilt-divisions", type=int, default=3)
    parser.add_argument("--bootstrap", type=int, default=1000)
    parser.add_argument("--cache", type=Path, default=Path("calibration_cache"), help="of features")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, help="write the figures here too")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    settings = Evaluate(bootstrap=arguments.bootstrap)
    codec = load_codec(Codec(weights="demo")) if CODEC in arguments.extractor else None
    extractors = [load_extractor(name, weights_dir=arguments.weights, codec=codec) for name in arguments.extractor]
    scans = Scans(arguments.scans, arguments.spacing, extractors, arguments.cache)
    nulls = null(scans, arguments.divisions, settings)
    print_null(nulls)
    spoilt = sensitivity(scans, arguments.spoilt_divisions, settings)
    print_sensitivity(spoilt)
    if arguments.json:
        about = {"scans": len(scans), "voxel_mm": scans.grid.voxel_mm, "bootstrap": arguments.bootstrap}
        write_json(arguments.json, {"about": about, "null": nulls, "spoilt": spoilt})


if __name__ == "__main__":
    main()
