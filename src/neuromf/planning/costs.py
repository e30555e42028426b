"""What jobs cost: seconds and bytes of earlier jobs of the same rule, grid and networks, scaled to the jobs of a plan.

Seconds are those of Snakemake's benchmark files (``results/benchmarks/<rule>/*.tsv``), of trainings those in ``model.json``
and ``codec.json``, which count all resumed parts. What was never recorded has no cost here: nothing is guessed.
"""

from __future__ import annotations

import csv
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from neuromf.config import Config, validate
from neuromf.planning.jobs import Call, Job
from neuromf.planning.raw import waiting_scans
from neuromf.shards import finished_scans
from neuromf.tables import Cohort, ReleaseRow, content_hash, read_cohort, read_json, read_manifest, read_release

STAGES = ("phantom", "skull_strip", "bias_correct", "conform", "encode")  # in the order of the work, per shard
PER_SET = ("sample", "decode", "evaluate_samples", "morphometry_samples")  # per volume of a folder of samples
PER_RELEASE = (
    "evaluate_reference",
    "morphometry_reference",
    "validate_codec",
    "latent_statistics",
    "latent_distribution",
)
AGAIN = ("setting", "code")  # reasons that make a stage do all scans of a shard
RECENT = 50  # shards of a cohort and stage that are looked at: the newest
_SLACK = 3.0  # seconds between a job's last file and its benchmark's


@dataclass(frozen=True)
class Record:
    """What an earlier job took.

    Attributes:
        rule: its rule.
        like: hash of the settings that decide the cost; only jobs with the same are compared.
        units: scans, volumes or updates that ``seconds`` were spent on.
        items: scans, volumes or models that ``bytes`` were written for.
    """

    rule: str
    like: str
    units: int
    seconds: float
    items: int
    bytes: int


@dataclass(frozen=True)
class Estimate:
    """What a planned job is expected to take; ``jobs`` earlier ones say so."""

    seconds: float
    bytes: float
    jobs: int


# --- what was recorded ----------------------------------------------------------------------------------------------


def records(results: Path) -> list[Record]:
    """Return what the jobs whose outputs lie in ``results`` took."""
    readers = (_shard_records, _cohort_records, _codec_records, _training_records, _set_records, _release_records)
    return [record for read in readers for record in read(results) if record.units > 0 and record.seconds > 0]


def _shard_records(results: Path) -> Iterator[Record]:
    for cohort in sorted(results.glob("cohorts/*")):
        for stage in STAGES[:-1]:
            folder = cohort / ("raw/manifests" if stage == "phantom" else f"preprocessed/manifests/{stage}")
            for manifest, benchmark in _with_benchmarks(results, stage, folder, f"{cohort.name}-"):
                seconds = _seconds(benchmark)
                ended = benchmark.stat().st_mtime
                files = [path.stat() for path in finished_scans(manifest).values()]
                done = [file for file in files if ended - seconds - _SLACK <= file.st_mtime <= ended + _SLACK]
                yield Record(stage, "", len(done), seconds, len(files), sum(file.st_size for file in files))
        for folder in sorted(cohort.glob("latents/*")):
            for manifest, benchmark in _with_benchmarks(results, "encode", folder, f"{cohort.name}-{folder.name}-"):
                rows = [row for row in read_manifest(manifest) if row.ok]
                yield Record(
                    "encode", folder.name, len(rows), _seconds(benchmark), len(rows), sum(row.bytes for row in rows)
                )


def _cohort_records(results: Path) -> Iterator[Record]:
    for benchmark in results.glob("benchmarks/check_failures/*.tsv"):
        yield Record("check_failures", "", 1, _seconds(benchmark), 1, 0)


def _codec_records(results: Path) -> Iterator[Record]:
    for about in results.glob("codecs/*/codec.json"):
        content = read_json(about, "architecture", "recipe", "figures")
        updates, seconds = content["figures"]["updates"], 60 * content["figures"]["minutes"]
        like = codec_like(content["architecture"], content["recipe"])
        yield Record("train_codec", like, updates, seconds, 1, _bytes_in(about.parent))


def _with_benchmarks(results: Path, rule: str, folder: Path, prefix: str) -> list[tuple[Path, Path]]:
    """Return the manifests of a folder whose jobs' benchmarks are there, with these; of many, the newest."""
    manifests = folder.glob("shard-*.tsv")
    pairs = [(path, _benchmark(results, rule, prefix + path.stem.removeprefix("shard-"))) for path in manifests]
    there = [(manifest, benchmark) for manifest, benchmark in pairs if benchmark.is_file()]
    return sorted(there, key=lambda pair: pair[1].stat().st_mtime)[-RECENT:]


def _training_records(results: Path) -> Iterator[Record]:
    for about in _models(results):
        content = read_json(about, "config", "training")
        training = content["training"]
        _, release, _, run, *_ = about.relative_to(results).parts
        checkpoints = results / "releases" / release / "checkpoints" / f"{run}-{training['seed']}"
        size = sum(_bytes_in(folder) for folder in (about.parent, checkpoints))
        yield Record("train", training_like(content["config"]), training["updates"], training["seconds"], 1, size)


def _set_records(results: Path) -> Iterator[Record]:
    for folder in sorted(results.glob("releases/*/samples/*/seed-*/nfe-*")):
        release, run, seed, nfe = folder.parents[3].name, folder.parents[1].name, folder.parent.name, folder.name
        about = folder.parents[3] / "runs" / run / seed / "model.json"
        participants = folder / "participants.tsv"
        if not (about.is_file() and participants.is_file()):
            continue
        like = set_like(read_json(about, "config")["config"], nfe.removeprefix("nfe-"))
        volumes = len(participants.read_text(encoding="utf-8").splitlines()) - 1
        stem = "-".join([release, run, seed.removeprefix("seed-"), nfe.removeprefix("nfe-")])
        for rule in PER_SET:
            if (benchmark := _benchmark(results, rule, stem)).is_file():
                size = _bytes_in(folder) if rule == "decode" else 0  # latents and volumes
                yield Record(rule, like, volumes, _seconds(benchmark), volumes, size)


def _release_records(results: Path) -> Iterator[Record]:
    models = {about.relative_to(results).parts[1]: about for about in _models(results)}
    for name, about in models.items():
        release, table = results / "releases" / name, results.parent / "config" / "releases" / f"{name}.tsv"
        if not table.is_file():
            continue
        content, scans = read_json(about, "config"), len(read_release(table))
        for benchmark in results.glob(f"benchmarks/*/{release.name}.tsv"):
            rule = benchmark.parent.name
            size = _bytes_in(release / "evaluation") if rule == "evaluate_reference" else 0
            units = scans if rule in PER_RELEASE else 1
            yield Record(rule, release_like(content["config"]), units, _seconds(benchmark), units, size)


def _models(results: Path) -> list[Path]:
    folders = ("seed-*", "replaced/*")
    return sorted(about for folder in folders for about in results.glob(f"releases/*/runs/*/{folder}/model.json"))


def _benchmark(results: Path, rule: str, stem: str) -> Path:
    return results / "benchmarks" / rule / f"{stem}.tsv"


def _seconds(benchmark: Path) -> float:
    """Return what a job took; 0, which no record has, where Snakemake was killed or the disk full as it wrote that down."""
    with benchmark.open(encoding="utf-8", errors="replace") as stream:
        row = next(csv.DictReader(stream, delimiter="\t"), {})
    try:
        return float(row.get("s") or 0)
    except ValueError:
        return 0.0


def _bytes_in(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


# --- what may be compared -------------------------------------------------------------------------------------------


def release_like(config: Mapping[str, Any]) -> str:
    """Return a hash of the settings that decide what work on a release's volumes costs: the grid and the codec's size."""
    codec = {key: config["codec"][key] for key in ("channels", "residual_blocks", "latent_channels")}
    return content_hash([config["preprocess"]["conform"]["shape"], codec])


def codec_like(architecture: Mapping[str, Any], recipe: Mapping[str, Any]) -> str:
    """Return a hash of the settings that decide what an update of the codec's training costs."""
    size = [architecture[key] for key in ("channels", "residual_blocks", "latent_channels")]
    terms = [recipe[key] > 0 for key in ("perceptual_weight", "adversarial_weight")]
    return content_hash(
        [size, terms, [recipe[key] for key in ("batch_size", "crop", "precision", "whole_volume_share")]]
    )


def set_like(config: Mapping[str, Any], nfe: str) -> str:
    """Return a hash of the settings that decide what a generated volume costs."""
    return content_hash([release_like(config), config["network"], nfe])


def training_like(config: Mapping[str, Any]) -> str:
    """Return a hash of the settings that decide what an update costs."""
    train = {
        key: config["train"].get(key) for key in ("batch_size", "precision", "checkpointing", "compile", "devices")
    }
    flow = {key: config["flow"].get(key) for key in ("variant", "fm_rows", "v_head", "jvp", "tangent")}
    shape = config["preprocess"]["conform"]["shape"]
    return content_hash([shape, config["codec"]["latent_channels"], config["network"], flow, train])


# --- what is planned ------------------------------------------------------------------------------------------------


class Costs:
    """The expected cost of a call's jobs.

    Args:
        call: what would run.
        known: of earlier jobs.
    """

    def __init__(self, call: Call, known: Sequence[Record]) -> None:
        self.call, self.folder = call, Path(call.folder)
        self.config: Config = validate(call.config)
        self.runs = {run: self.config.for_run(run).model_dump(mode="json") for run in self.config.runs}
        self.cohorts: dict[str, Cohort] = {}
        self.by_kind: dict[tuple[str, str], list[Record]] = {}
        for record in known:
            self.by_kind.setdefault((record.rule, record.like), []).append(record)
        self.staged = {_place(job): job for job in call.jobs if job.rule in STAGES}

    def of(self, job: Job) -> Estimate | None:
        """Return what a job is expected to take: medians of what was recorded; None where nothing comparable was."""
        like, units, items = self._size(job)
        if not (earlier := self.by_kind.get((job.rule, like))):
            return None
        seconds = statistics.median(record.seconds / record.units for record in earlier)
        size = statistics.median(record.bytes / max(record.items, 1) for record in earlier)
        return Estimate(seconds * units, size * items, len(earlier))

    def scans(self, job: Job) -> int:
        """Return how many scans a job of a stage works on; 0 for other rules.

        All of its shard where settings or code changed here or before; else those that are new, lost or not done yet.
        """
        if job.rule not in STAGES:
            return 0
        cohort, shard, _ = _place(job)
        before = [self.staged.get((cohort, shard, stage)) for stage in STAGES[: STAGES.index(job.rule)]]
        scans = self._cohort(cohort).shard(int(shard), self.config.shard_size)
        if any(other.why in AGAIN for other in [job, *before] if other) or "train_codec" in job.after:
            return len(scans)
        undone = len({scan.scan_id for scan in scans} - self._done(job))
        return max([undone, 1, *(self.scans(other) for other in before if other)])

    def _size(self, job: Job) -> tuple[str, int, int]:
        """Return what a job's cost is like, the units it takes time for and the items it writes."""
        if job.rule in STAGES:
            scans = self.scans(job)
            return job.wildcards.get("codec", ""), scans, scans
        if job.rule == "check_failures":
            return "", 1, 1
        if job.rule == "train_codec":
            recipe = self.call.config["codec_training"]
            return codec_like(self.call.config["codec"], recipe), recipe["updates"], 1
        if job.rule == "train":
            config = self.runs[job.wildcards["run"]]
            train = self.config.for_run(job.wildcards["run"]).train.counted(self._train_split)
            return training_like(config), train.updates, 1
        if job.rule in PER_SET:
            volumes = self.config.sample.n
            return set_like(self.runs[job.wildcards["run"]], job.wildcards["nfe"]), volumes, volumes
        units = self._released if job.rule in PER_RELEASE else 1
        return release_like(self.call.config), units, units

    def _done(self, job: Job) -> set[str]:
        manifest = self.folder / job.output
        if job.rule != "encode":
            return set(finished_scans(manifest)) - set(waiting_scans(manifest))
        manifest = manifest.with_suffix(".tsv")
        return {row.scan_id for row in read_manifest(manifest) if row.ok} if manifest.is_file() else set()

    def _cohort(self, name: str) -> Cohort:
        if name not in self.cohorts:
            self.cohorts[name] = read_cohort(self.folder / "config" / "cohorts" / f"{name}.tsv")
        return self.cohorts[name]

    @property
    def _released(self) -> int:
        return len(self._release)

    @property
    def _train_split(self) -> int:
        return sum(row.split == "train" for row in self._release)

    @property
    def _release(self) -> tuple[ReleaseRow, ...]:
        return read_release(self.folder / "config" / "releases" / f"{self.config.release}.tsv")


def _place(job: Job) -> tuple[str, str, str]:
    return job.wildcards["cohort"], job.wildcards["shard"], job.rule
