"""The report of a release: one self-contained HTML page, the README's picture and the table of metrics."""

from __future__ import annotations

import base64
import logging
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pandas as pd
import yaml
from matplotlib.figure import Figure

from neuromf.evaluation.rows import read_parquet
from neuromf.paper import codec, figures, latents, mosaics, regions, runs, spectrum, style, tables
from neuromf.paper.report.quality import Quality, read_quality
from neuromf.paper.report.summary import key_figures, sentences
from neuromf.tables import (
    SPLITS,
    atomic_path,
    file_sha256,
    read_json,
    read_release,
    release_modality,
    release_sha256,
    write_text,
)
from neuromf.volume import read_volume

log = logging.getLogger(__name__)

SHOWN = 3  # volumes a row of the mosaics
PROGRESS = 3  # pictures of each training, from its first to its last
PICTURED = 4  # volumes of each kind in the README's picture, two a row
PACKAGES = ("neuromf", "torch", "monai", "lightning", "antspyx", "SimpleITK", "nibabel", "numpy", "scipy", "snakemake")


@dataclass(frozen=True)
class SampleSet:
    """A folder of generated volumes (sub-*.nii.gz) and sample_timing.json."""

    run: str
    seed: int
    nfe: int
    folder: Path


@dataclass(frozen=True)
class TrainingRun:
    """A folder with metrics.csv, val.csv and model.json of one trained model."""

    run: str
    seed: int
    folder: Path


@dataclass(frozen=True)
class ReportInputs:
    """What the report is made of; see `neuromf.evaluation.evaluate` for the tables."""

    release: str
    release_table: Path
    manifests: Mapping[str, Mapping[str, Sequence[Path]]]  # cohort → stage, in the order of the work → shard manifests
    metrics: Path  # metrics.parquet, metrics.json beside it
    scans: Path  # scans.parquet
    reconstructions: Path  # folder of <scan>_real.nii.gz and <scan>_reconstruction.nii.gz
    codec_gate: Path  # codec_gate.tsv
    codec_picture: Path  # of the worst scans, png
    latents: Path  # latents.json
    spectra: Path  # spectra.parquet
    copies_picture: Path  # of the most suspect volumes, png
    differences: Path  # differences.parquet
    seed_tests: Path  # seed_tests.parquet
    samples: Sequence[SampleSet]
    training: Sequence[TrainingRun]
    config: Mapping[str, Any]  # resolved
    git_commit: str | None = None


@dataclass(frozen=True)
class Picture:
    """An image inside the page, for light and dark pages (the same for photographs)."""

    light: str
    dark: str
    alt: str
    caption: str


def build_report(inputs: ReportInputs, *, page: Path, picture: Path, table: Path) -> None:
    """Write the page, the picture of real and generated brains (png) and the table of metrics (csv; .tex beside it).

    Raises:
        ValueError: no samples to show.
        TableError, VolumeError: an input that cannot be read.
    """
    if not inputs.samples:
        raise ValueError("the report needs at least one folder of samples")
    metrics, scans = read_parquet(inputs.metrics), read_parquet(inputs.scans)
    shown = sorted(inputs.samples, key=lambda s: (_run_order(inputs, s.run), s.seed, s.nfe))
    main = shown[0]
    pairs = _pairs(inputs.reconstructions)
    real, rebuilt = [pair[1] for pair in pairs], [pair[2] for pair in pairs]
    release = read_release(inputs.release_table)
    quality = read_quality(inputs.manifests, release)
    counts = {split: sum(row.split == split for row in release) for split in SPLITS}
    trained_on = {row.scan_id for row in release if row.split == "train"}
    unseen = not trained_on.intersection(pair[0] for pair in pairs)

    overview = _two_a_row("real", real[:PICTURED]) + _two_a_row(_sample_label(main), _volumes(main, PICTURED))
    with atomic_path(picture) as temporary:
        temporary.write_bytes(style.as_png(mosaics.mosaic(overview)))
    tables.write_csv(metrics, table)
    tables.write_latex(metrics, table.with_suffix(".tex"))

    context = {
        "release": inputs.release,
        "summary": sentences(metrics, quality, counts, release_modality(release), main.run, main.nfe),
        "key_figures": key_figures(metrics, main.run, main.nfe),
        "overview": _photograph(overview, "Real and generated brains", _overview_caption(main, unseen)),
        "counts": counts,
        "modality": release_modality(release),
        "confidence": inputs.config["evaluate"]["confidence"],
        "k0": inputs.config["evaluate"]["spectrum_k0"],
        "cohorts": sorted({row.cohort for row in release}),
        "quality": quality,
        "quality_figure": _quality_figure(quality),
        "mosaics": _mosaics(shown, real, rebuilt),
        "gate": codec.gate_table(inputs.codec_gate),
        "codec_table": tables.measured(tables.metric_table(metrics, tables.CODEC_COLUMNS)),
        "codec_picture": _codec_picture(inputs.codec_picture),
        **_latents(inputs.latents),
        "training": _training(inputs.training),
        "progress": [picture for run in inputs.training for picture in _progress(run)],
        "metric_table": tables.measured(tables.metric_table(metrics)),
        "metric_figures": _metric_figures(metrics),
        "spectrum_figure": _spectrum(read_parquet(inputs.spectra), inputs.config["evaluate"]["spectrum_k0"]),
        "spectrum_table": tables.metric_table(metrics, tables.SPECTRUM_COLUMNS, real="real scans"),
        "volume_figures": _volume_figures(scans, main),
        **_regions(metrics, main),
        "copies_tables": {
            title: tables.measured(tables.metric_table(metrics, tables.copies_columns(target), real="real scans"))
            for target, title in (
                ("training", "Nearest training scan"),
                ("other", "Nearest other volume of the same set"),
            )
        },
        "copies_picture": _copies_picture(inputs.copies_picture),
        **_runs_compared(inputs),
        "timings": _timings(metrics),
        "hardware": _hardware(inputs.samples),
        "models": [_model(run) for run in inputs.training],
        "provenance": _provenance(inputs),
        "config": yaml.safe_dump(dict(inputs.config), sort_keys=False, allow_unicode=True),
    }
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("neuromf.paper.report", "."), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    write_text(page, environment.get_template("report.html").render(context))
    log.info("report: %s (%.1f MB)", page, page.stat().st_size / 1e6)


# --- volumes --------------------------------------------------------------------------------------------------------


def _pairs(folder: Path) -> list[tuple[str, mosaics.Volume, mosaics.Volume]]:
    """Return scan id, real volume and its reconstruction."""
    paths = sorted(folder.glob("*_real.nii.gz"))
    if not paths:
        raise ValueError(f"{folder} holds no *_real.nii.gz; evaluate the release's real scans first")
    ids = [path.name.removesuffix("_real.nii.gz") for path in paths]
    rebuilt = [path.with_name(f"{scan}_reconstruction.nii.gz") for scan, path in zip(ids, paths, strict=True)]
    return [(scan, _read(a), _read(b)) for scan, a, b in zip(ids, paths, rebuilt, strict=True)]


def _volumes(samples: SampleSet, count: int) -> list[mosaics.Volume]:
    paths = sorted(samples.folder.glob("sub-*.nii.gz"))[:count]
    if not paths:
        raise ValueError(f"{samples.folder} holds no sub-*.nii.gz; decode the samples first")
    return [_read(path) for path in paths]


def _read(path: Path) -> mosaics.Volume:
    return np.asarray(read_volume(path).dataobj, dtype=np.float32)


def _run_order(inputs: ReportInputs, run: str) -> int:
    runs = list(inputs.config.get("runs", {}))
    return runs.index(run) if run in runs else len(runs)


def _sample_label(samples: SampleSet) -> str:
    return f"generated\n{style.run_label(samples.run)}\n{samples.nfe} NFE"


def _mosaics(shown: Sequence[SampleSet], real: list[mosaics.Volume], rebuilt: list[mosaics.Volume]) -> list[Picture]:
    """Return the comparison of real, reconstructed and one-step brains, then each run along its NFE."""
    first_seed = [s for s in shown if s.seed == next(t.seed for t in shown if t.run == s.run)]
    runs: dict[str, list[SampleSet]] = {}
    for samples in first_seed:
        runs.setdefault(samples.run, []).append(samples)
    rows = [mosaics.Row("real", real[:SHOWN]), mosaics.Row("codec\nreconstruction", rebuilt[:SHOWN])]
    rows += [mosaics.Row(_sample_label(sets[0]), _volumes(sets[0], SHOWN)) for sets in runs.values()]
    pictures = [
        _photograph(rows, "Real, reconstructed and generated brains in three planes",
                    "Real scans, the same scans through the codec, and generated brains of each run with the"
                    " fewest network evaluations (NFE). The codec's row is the best any generator here can look.")
    ]  # fmt: skip
    for run, sets in runs.items():
        if len(sets) > 1:
            steps = [mosaics.Row(f"{s.nfe} NFE", _volumes(s, SHOWN)) for s in sets]
            caption = f"{style.run_label(run)}: the same noise, more network evaluations from top to bottom."
            pictures.append(_photograph(steps, f"Samples of {run} with growing NFE", caption))
    return pictures


def _two_a_row(label: str, volumes: Sequence[mosaics.Volume]) -> list[mosaics.Row]:
    starts = range(0, len(volumes), 2)
    return [mosaics.Row("" if start else label, volumes[start : start + 2]) for start in starts]


def _overview_caption(main: SampleSet, unseen: bool) -> str:
    evaluations = "one network evaluation" if main.nfe == 1 else f"{main.nfe} network evaluations"
    return (
        f"Top: real scans{' that no model was trained on' if unseen else ''}. Bottom: brains that"
        f" {style.run_label(main.run)} generated with {evaluations}, unselected (the first {PICTURED} samples). Axial,"
        " coronal and sagittal slices."
    )


# --- pictures -------------------------------------------------------------------------------------------------------


def _photograph(rows: Sequence[mosaics.Row], alt: str, caption: str) -> Picture:
    uri = _uri("image/png", style.as_png(mosaics.mosaic(rows)))
    return Picture(uri, uri, alt, caption)


def _plot(draw: Callable[[], Figure], alt: str, caption: str) -> Picture:
    uris = []
    for theme in (style.LIGHT, style.DARK):
        with style.themed(theme):
            uris.append(_uri("image/svg+xml", style.as_svg(draw())))
    return Picture(uris[0], uris[1], alt, caption)


def _uri(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def _quality_figure(quality: Quality) -> Picture | None:
    if not quality.figures:
        return None
    return _plot(lambda: figures.distributions(quality.figures), "Distributions of preprocessing figures",
                 "What preprocessing measured on each scan.")  # fmt: skip


def _codec_picture(path: Path) -> Picture:
    uri = _uri("image/png", path.read_bytes())
    return Picture(uri, uri, "The scans that the codec reproduces worst",
                   "The held-out scans with the smallest SSIM inside the brain, the worst first: scan, reconstruction and"
                   " their difference. Thin lines: the border of the brain and that of grey and white matter.")  # fmt: skip


def _copies_picture(path: Path) -> Picture:
    uri = _uri("image/png", path.read_bytes())
    return Picture(uri, uri, "The generated volumes that most look like copies",
                   "The most suspect generated volumes, also where none is flagged: each beside its nearest training scan,"
                   " or the nearest other volume of its set, which is flipped where its mirror image is meant, and their"
                   " difference. p: how rarely real scans come as near.")  # fmt: skip


def _latents(path: Path) -> dict[str, Any]:
    """Return the figure and the table of the training latents' distribution."""
    content = read_json(path)
    caption = (
        f"The {content['n']} training latents in units of their standard deviation, on a logarithmic scale, beside the noise"
        " that the flow starts from; the peak is the background. Below: the channels' correlation, and the shares of"
        " variance of the principal components over channels at one place and over whole latents of"
        f" {content['scan_pca']['scans']} scans, which span {max(0, content['scan_pca']['scans'] - 1)} dimensions at most."
    )
    figure = _plot(lambda: latents.latents(content), "Distribution of the training latents", caption)
    return {"latent_figure": figure, "latent_table": latents.latent_table(content)}


def _spectrum(table: pd.DataFrame, k0: float) -> Picture:
    return _plot(lambda: spectrum.spectra(table, k0=k0), "Power spectra",
                 "Mean power at each spatial frequency, up to the grid's Nyquist frequency; bands over scans, dotted: k0."
                 " Beside real scans, the reconstructions' line is what the codec loses; beside reconstructions, a run's"
                 " line is what its generator loses on top.")  # fmt: skip


def _regions(metrics: pd.DataFrame, main: SampleSet) -> dict[str, Any]:
    """Return the figure and the tables of regional volumes, None and empty without a segmenter."""
    if regions.regional(metrics).empty:
        return {"region_figure": None, "region_tables": []}
    caption = (
        "How the regional volumes and the left-right asymmetry of generated brains differ from those of real scans, and how"
        " far each generated brain's labels overlap with those of its nearest training scan by features; each run at its"
        " fewest network evaluations. Grey: training against held-out scans."
    )
    figure = _plot(lambda: regions.regions(metrics), "Regional volumes", caption)
    table = regions.region_table(metrics, main.run)
    wide = table.columns.get_loc("In real range")  # the columns from here on have no room beside the others
    halves = [table.iloc[:, :wide], table.iloc[:, [0, 1, *range(wide, table.shape[1])]]]
    return {"region_figure": figure, "region_tables": [*halves, regions.ratio_table(metrics, main.run)]}


def _training(runs: Sequence[TrainingRun]) -> Picture | None:
    logs = {}
    for run in runs:
        label = style.run_label(run.run) + (f", seed {run.seed}" if len({r.seed for r in runs}) > 1 else "")
        about = read_json(run.folder / "model.json")
        exported = about["training"]["exported"]["average"]
        logs[label] = (tables.read_csv(run.folder / "metrics.csv"), tables.read_csv(run.folder / "val.csv"), exported)
    if not logs:
        return None
    return _plot(lambda: figures.training_curves(logs), "Training curves",
                 "Raw losses, before the adaptive weight, which hides them. Pale: training batches, and their running"
                 " mean over a fifth of the run. Dots: validation on fixed draws, of the exported average of the"
                 " weights (line) and of the weights themselves (dashed). Right: how far one-step samples of fixed noise"
                 " lie from the validation latents; smaller is better.")  # fmt: skip


def _progress(run: TrainingRun) -> list[Picture]:
    """Return pictures of one-step samples that the training wrote, evenly spaced from the first to the last."""
    paths = sorted((run.folder / "progress").glob("update-*.png"))
    chosen = (
        [paths[n] for n in np.unique(np.linspace(0, len(paths) - 1, PROGRESS).round().astype(int))] if paths else []
    )
    pictures = []
    for path in chosen:
        update, uri = int(path.stem.removeprefix("update-")), _uri("image/png", path.read_bytes())
        caption = f"{style.run_label(run.run)}, seed {run.seed}, update {update:,}"
        pictures.append(Picture(uri, uri, f"One-step samples at update {update}", caption))
    return pictures


def _metric_figures(metrics: pd.DataFrame) -> list[Picture]:
    metrics = metrics[metrics["extractor"] == "codec"]
    plots = [
        ("frechet_distance", "Fréchet distance (codec) to the test split", "distance, log scale", True),
        ("kernel_distance", "KID (codec) to the test split", "squared MMD", False),
    ]
    pictures = []
    for metric, title, unit, log_scale in plots:
        if (metrics["metric"].eq(metric) & metrics["nfe"].notna() & metrics["value"].notna()).any():
            draw = partial(figures.metric_against_nfe, metrics, metric, title, unit, log_scale=log_scale)
            caption = "Bars: bootstrap intervals over scans. Dashed with band: references measured the same way."
            pictures.append(_plot(draw, title, caption))
    return pictures


def _volume_figures(scans: pd.DataFrame, main: SampleSet) -> list[Picture]:
    """Return tissue volumes and nearness to the training set: real scans against each run's fewest NFE."""
    real = (scans["run"] == "real").rename("real")
    trained = scans[scans["nfe"].notna()]
    groups = {"real": real}
    runs = list(dict.fromkeys([main.run, *trained["run"]]))
    for run in runs:
        fewest = trained.loc[trained["run"] == run, "nfe"].min()
        groups[run] = (scans["run"] == run) & (scans["nfe"] == fewest).fillna(False).astype(bool)
    held_out = groups | {"real": real & (scans["split"] != "train")}
    return [
        _plot(lambda: figures.tissue_distributions(scans, groups), "Tissue volumes of real and generated brains",
              "Tissue volumes of all real scans of the release and of each run at its fewest network evaluations."),
        _plot(lambda: figures.nearest_histogram(scans, held_out), "Nearest training scan",
              "How near each generated brain is to its nearest training scan, mirror images included, beside real scans"
              " that no model was trained on. Copies would lie beyond the real ones; lines mark the medians."),
    ]  # fmt: skip


# --- tables ---------------------------------------------------------------------------------------------------------


def _runs_compared(inputs: ReportInputs) -> dict[str, Any]:
    """Return the tables of differences between runs and of seeds; that of tests is empty where seeds allow none."""
    tests = read_parquet(inputs.seed_tests)
    return {
        "difference_table": runs.difference_table(read_parquet(inputs.differences)),
        "seeds": runs.most_seeds(tests),
        "seed_table": runs.seed_table(tests),
        "seed_test_table": runs.seed_test_table(tests),
    }


def _timings(metrics: pd.DataFrame) -> pd.DataFrame:
    """Return seconds and, where they were told, joules per volume of each stage with intervals."""
    columns = [
        tables.Column(metric, stage, f"{title}, {unit}", digits)
        for metric, unit, digits in (("seconds_per_volume", "s", 3), ("joules_per_volume", "J", 1))
        for stage, title in (("network", "Network"), ("decode", "Decoder"), ("total", "Total"))
    ]
    return tables.measured(tables.metric_table(metrics, columns))


def _hardware(samples: Sequence[SampleSet]) -> list[str]:
    """Return which hardware each stage ran on, in words, and for which samples where they differ."""
    found: dict[str, list[str]] = {}
    for one in samples:
        about = read_json(one.folder / "sample_timing.json").get("hardware", {})
        for stage in ("network", "decode"):
            machine = about.get(stage) or {"name": "unknown hardware", "threads": None, "joules": None}
            threads = f", threads: {machine['threads']}" if machine["threads"] else ""
            counter = f"joules by {machine['joules']}" if machine.get("joules") else "no joules told"
            label = "Network" if stage == "network" else "Decoder"
            found.setdefault(f"{label}: {machine['name']}{threads}, {counter}", []).append(
                f"{style.run_label(one.run)}, seed {one.seed}, {one.nfe} NFE"
            )
    few = len(found) > 2
    return [text + (f" ({'; '.join(sets)})" if few else "") for text, sets in sorted(found.items(), reverse=True)]


def _model(run: TrainingRun) -> dict[str, Any]:
    about = read_json(run.folder / "model.json")
    return {
        "run": run.run,
        "seed": run.seed,
        "validation": _validation(tables.read_csv(run.folder / "val.csv"), about["training"]["exported"]),
        "training": about["training"],
        "variant": about["config"]["flow"]["variant"],
        "sha256": file_sha256(run.folder / "model.safetensors"),
        "codec": about["codec"],
        "code_version": about["code_version"],
    }


def _validation(rows: pd.DataFrame, exported: Mapping[str, Any]) -> dict[str, list[float]]:
    """Return raw loss and sample distance where the exported weights were validated: of them and of the weights themselves.

    ``first_raw_loss`` is that of the exported average at the first validation. A run without validation has none of them.
    """
    rows = rows.assign(raw_loss=rows["raw_fm"].fillna(0) + rows["raw_mf"].fillna(0))
    average = rows[rows["average"].astype(str) == exported["average"]]
    online = rows[rows["average"].astype(str) == "online"]
    if not (average["step"] == exported["update"]).any():
        return {}
    found = {
        name: [float(part.loc[part["step"] == exported["update"], name].iloc[0]) for part in (average, online)]
        for name in ("raw_loss", "sample_distance")
    }
    return found | {"first_raw_loss": [float(average["raw_loss"].iloc[0])]}


def _provenance(inputs: ReportInputs) -> dict[str, str]:
    evaluation = read_json(inputs.metrics.with_suffix(".json"), "provenance")["provenance"]
    codecs = sorted({part["codec_sha256"] for part in evaluation if "codec_sha256" in part})
    return {
        "Git commit": inputs.git_commit or "not a git checkout",
        "Release table, SHA-256": release_sha256(read_release(inputs.release_table)),
        "Codec weights, SHA-256": ", ".join(codecs),
        "Python": platform.python_version(),
        **{name: metadata.version(name) for name in PACKAGES},
    }
