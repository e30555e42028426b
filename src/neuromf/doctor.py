"""``neuromf doctor``: can this machine run this configuration on these scans? One finding per line, with the remedy.

Nothing is written but what is removed again at once, and no network is loaded.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import psutil

from neuromf import config as configuration
from neuromf import environment, gpu
from neuromf.as_written import as_text, written
from neuromf.codec.weights import perceptual_files
from neuromf.cohort.field_of_view import cut_fractions, extent, stripped_brains, template_brain
from neuromf.cohort.find import RELEASES, find_release
from neuromf.cohort.headers import told_of
from neuromf.config import Config
from neuromf.planning.plan import PlanError, make_plan, size
from neuromf.preprocess.conform import share_outside
from neuromf.tables import SPLITS, Cohort, check_release
from neuromf.wanted_weights import wanted_weights

if TYPE_CHECKING:
    import torch

Status = Literal["ok", "warning", "blocker"]
# Of the libraries: on a CPU what a training's process takes before its first update; on a GPU an allowance for CUDA's
# context, cuDNN and the allocator's gaps, which was not measured.
LIBRARY_BYTES = 2**30
CPU_FACTOR = 2  # what passes take of a CPU's memory over what their tensors need (benchmarks/memory.py)
PRECISIONS = {"32": "float32", "bf16": "bf16"}
NEARLY = 0.8  # of what there is: more is a warning


@dataclass(frozen=True)
class Finding:
    """What one check found; ``remedy`` says what to do about a warning or a blocker."""

    check: str
    status: Status
    found: str
    remedy: str = ""

    def __str__(self) -> str:
        told = f"{self.status:<8} {self.check}: {self.found}"
        return f"{told}\n{'':8} → {self.remedy}" if self.remedy else told


@dataclass(frozen=True)
class Patient:
    """What is looked at.

    Attributes:
        workflow: folder of the Snakefile, presets and lock file.
        settings: further settings, ``key=value`` as `snakemake --config` takes them.
        config: resolved from config/config.yaml in the current folder and ``settings``.
    """

    workflow: Path
    settings: tuple[str, ...]
    config: Config

    @property
    def weights_dir(self) -> Path | None:
        folder = self.config.weights_dir or os.environ.get("NEUROMF_WEIGHTS")
        return Path(folder) if folder else None

    def cohorts(self) -> list[Cohort]:
        """Return the release's cohorts."""
        return list(find_release(self.config.release)[1].values())


def examine(workflow: Path, settings: Sequence[str] = ()) -> Iterator[Finding]:
    """Yield the findings on the project in the current folder, the quick ones first.

    Args:
        workflow: folder of the Snakefile.
        settings: as `Patient.settings`.
    """
    yield check_python()
    if refusal := environment.path_refusal(workflow.absolute()):
        yield Finding("checkout", "blocker", refusal)
    yield check_packages(workflow / environment.LOCK)
    try:
        patient = Patient(workflow, tuple(settings), load_config(workflow, settings))
    except (ValueError, OSError) as error:
        yield Finding("configuration", "blocker", str(error), "correct config/config.yaml (settings: config/README.md)")
        return
    yield Finding("configuration", "ok", f"preset {patient.config.preset}, runs {', '.join(patient.config.runs)}")
    checks: tuple[tuple[str, Callable[[Patient], Iterator[Finding]]], ...] = (
        ("tables", check_tables),
        ("folders", check_folders),
        ("device", check_device),
        ("precision", check_precision),
        ("memory", check_memory),
        ("memorisation", check_memorisation),
        ("weights", check_weights),
        ("scans", check_scans),
        ("field of view", check_field_of_view),
        ("disk", check_disk),
    )
    for name, check in checks:
        try:
            yield from check(patient)
        except (ValueError, OSError, RuntimeError) as error:
            yield Finding(name, "blocker", str(error))


def load_config(workflow: Path, settings: Sequence[str]) -> Config:
    """Return the configuration that `snakemake --config <settings>` would run here.

    Raises:
        ConfigError: it is not valid, or a setting is no ``key=value``.
    """
    path = Path("config/config.yaml")
    given = configuration.read_yaml(path) if path.is_file() else {}
    for one in settings:
        key, equals, value = one.partition("=")
        if not equals:
            raise configuration.ConfigError(f"{one!r} is no setting; write key=value, e.g. preset=methodology")
        read = as_text(value)
        if key == "runs" and isinstance(read, dict):  # Snakemake adds them to the file's
            read = configuration.overlay(given.get("runs", {}), read)
        given = configuration.overlay(given, {key: read})
    return configuration.load(given, workflow / "config" / "presets", written([path], settings))


# --- the machine ----------------------------------------------------------------------------------------------------


def check_python() -> Finding:
    """Python is a version that the packages are locked for."""
    version = ".".join(map(str, sys.version_info[:3]))
    if version.rpartition(".")[0] in environment.PYTHONS:
        return Finding("Python", "ok", version)
    return Finding(
        "Python", "blocker", version, f"install Python {' or '.join(environment.PYTHONS)}, then `make clean install`"
    )


def check_packages(lock: Path) -> Finding:
    """The installed packages are those of the lock file; one that NeuroMF needs and that is missing blocks."""
    remedy = "run `make install`, or python -m pip install --require-hashes -r requirements.lock"
    if not lock.is_file():
        return Finding(
            "packages", "warning", f"{lock} is missing: nothing to compare with", "name a checkout: --workflow"
        )
    locked, installed = environment.locked_packages(lock), environment.installed_packages()
    needed = environment.needed_packages()
    if absent := sorted(needed - installed.keys()):
        return Finding("packages", "blocker", f"{', '.join(absent)} not installed", remedy)
    there = {name: version for name, version in locked.items() if name in installed}
    other = [
        f"{name} {installed[name]} (locked: {version})" for name, version in there.items() if installed[name] != version
    ]
    if other:
        found = f"{len(other)} of other versions than those that were tested: {', '.join(other[:5])}"
        return Finding("packages", "warning", found, remedy)
    return Finding("packages", "ok", f"{len(there)} as locked")


def check_folders(patient: Patient) -> Iterator[Finding]:
    """What the workflow writes to can be written to."""
    folders = [Path("results"), Path(".snakemake")]
    if closed := ", ".join(str(folder.absolute()) for folder in folders if not _writable(folder)):
        remedy = "change its rights, or run in a folder of your own"
        yield Finding("folders", "blocker", f"{closed} cannot be written to", remedy)
    else:
        yield Finding("folders", "ok", f"{' and '.join(map(str, folders))} in {Path.cwd()} can be written to")


def check_device(patient: Patient) -> Iterator[Finding]:
    """The device that the configuration asks for is there."""
    device, gpus = patient.config.device, gpu.installed_gpus()
    wanted = max(patient.config.for_run(run).train.devices for run in patient.config.runs)
    if device == "cpu":
        yield Finding("device", "ok", f"networks run on the CPU ({os.cpu_count()} cores), as `device: cpu` asks")
    elif not gpus and device == "cuda":
        yield Finding(
            "device", "blocker", "`device: cuda` and no GPU is found", "check nvidia-smi, or set `device: auto`"
        )
    elif not gpus:
        voxels = "×".join(map(str, patient.config.preprocess.conform.shape))
        found = f"no GPU is found: networks would run on {os.cpu_count()} CPU cores, on {voxels} voxels"
        yield Finding("device", "warning", found, "use a machine with a GPU, or a small preset (preset=demo)")
    else:
        names = ", ".join(f"{one.name} ({size(one.memory_bytes)})" for one in gpus)
        if wanted > len(gpus):
            yield Finding(
                "device", "blocker", f"train.devices = {wanted}, found {names}", f"set train.devices: {len(gpus)}"
            )
        elif other := gpu.dealt_elsewhere():
            yield Finding("device", "ok", f"{names}; {other} is set, so jobs are not dealt a GPU each")
        else:
            yield Finding("device", "ok", f"{names}; each job with a GPU gets one of its own")


def check_precision(patient: Patient) -> Iterator[Finding]:
    """Trainings are asked for in what the device computes well."""
    from neuromf.training.precision import costly_settings, training_precision

    device = _device(patient)
    for run in patient.config.runs:
        settings = patient.config.for_run(run)
        asked, taken = settings.train.precision, training_precision(settings, device)
        yield Finding("precision", "ok", f"{run} trains in {PRECISIONS[taken]}, as train.precision: {asked} asks")
    trained = patient.config.codec.weights == "trained"
    for setting, cost in costly_settings(patient.config, patient.config.runs, device, codec=trained):
        yield Finding("precision", "warning", f"{setting}, but {cost}", "set it to auto or 32")


def check_memory(patient: Patient) -> Iterator[Finding]:
    """A training of each run fits into the memory of the device."""
    from neuromf.training.memory import training_memory
    from neuromf.training.precision import training_precision, with_precision

    gpus = [] if patient.config.device == "cpu" else gpu.installed_gpus()
    for run in patient.config.runs:
        settings = patient.config.for_run(run)
        memory = training_memory(with_precision(settings, training_precision(settings, _device(patient))))
        if gpus:
            needed, there = memory.bytes + LIBRARY_BYTES, min(one.memory_bytes for one in gpus)
            where = f"of {size(there)} on the GPU"
        else:
            each = memory.states + CPU_FACTOR * memory.working + LIBRARY_BYTES
            needed = settings.train.devices * each  # its processes share the memory
            there = psutil.virtual_memory().total
            where = f"of {size(there)} in this machine"
        found = (
            f"training {run} ({memory.parameters / 1e6:.1f} M parameters, {settings.train.batch_size} latents) takes"
            f" {size(needed)} {where}: {size(memory.states)} for weights, moments and averages, {size(memory.working)} for"
            " gradients and activations, the rest for libraries"
        )
        remedy = "lower train.batch_size, set train.checkpointing: true or train.precision: bf16, or add train.devices"
        if needed > NEARLY * there:
            yield Finding("memory", "blocker" if needed > there else "warning", found, remedy)
        else:
            yield Finding("memory", "ok", found)


def check_memorisation(patient: Patient) -> Iterator[Finding]:
    """No network is so large for its scans that it would learn them by heart without a word."""
    from neuromf.training.memorisation_risk import memorisation_risk, parameters_of

    scans = sum(row.split == "train" for row in find_release(patient.config.release)[0])
    for run in patient.config.runs:
        settings = patient.config.for_run(run)
        risk = memorisation_risk(parameters_of(settings), scans)
        found = f"{run} has {risk.ratio:,.0f} parameters for each of {scans} training scans"
        if risk.advice and settings.train.loss_mask.kind == "none":
            remedy = f"add scans, or set train.loss_mask: {{kind: block, kept: {risk.advice.kept:g}}}"
            yield Finding("memorisation", "warning", f"{found}: the risk of copies is {risk.level}", remedy)
        else:
            yield Finding("memorisation", "ok", found)


def _device(patient: Patient) -> torch.device:
    import torch

    return torch.device("cuda" if patient.config.device != "cpu" and gpu.installed_gpus() else "cpu")


# --- the project ----------------------------------------------------------------------------------------------------


def check_tables(patient: Patient) -> Iterator[Finding]:
    """The release and its cohorts can be read and fit each other."""
    rows, cohorts = find_release(patient.config.release)
    check_release(RELEASES / f"{patient.config.release}.tsv", rows, cohorts)
    splits = ", ".join(f"{sum(row.split == split for row in rows)} {split}" for split in SPLITS)
    absent = [one.root for one in cohorts.values() if one.source != "phantom" and not one.root.is_dir()]
    if absent:
        remedy = "mount it, or correct `root` in config/cohorts/*.json"
        yield Finding("tables", "blocker", f"the scans' folder {', '.join(map(str, absent))} is not there", remedy)
    else:
        names = ", ".join(cohorts)
        yield Finding("tables", "ok", f"release {patient.config.release}: {len(rows)} scans ({splits}) of {names}")


def check_weights(patient: Patient) -> Iterator[Finding]:
    """The published weights that the configuration names are there and are the published ones."""
    for what, find in wanted_weights(patient.config, patient.weights_dir):
        try:
            path = find()
        except (ValueError, OSError) as error:
            yield Finding("weights", "blocker", f"{what}: {error}")
        else:
            yield Finding("weights", "ok", f"{what}: {path}")
    lpips = perceptual_files(patient.weights_dir)
    if absent := [str(file) for file in lpips if not file.is_file()]:
        found = f"LPIPS: {' and '.join(absent)} missing, so it is not measured"
        yield Finding("weights", "warning", found, "docs/codec.md says where to fetch them")


def check_scans(patient: Patient) -> Iterator[Finding]:
    """No scan is refused, and none has a header that is doubtful.

    Goes by the skull strip's rows; before it ran, by the headers of some scans.
    """
    for cohort in patient.cohorts():
        told = told_of(cohort)
        if not told.number:
            continue
        by = "scans stripped so far" if told.stripped else "scans whose header was looked at"
        counts = f"{len(told.refused)} cannot be used, {len(told.doubtful)} are doubtful"
        found = f"{cohort.name}: of {told.number} {by}, {counts}"
        if first := [*told.refused[:1], *told.doubtful[:1]]:
            remedy = (
                "see the report, or the skull strip's manifests, for all; docs/cohorts.md says how a header is repaired"
            )
            yield Finding("scans", "warning", f"{found}, such as {'; '.join(first)}", remedy)
        else:
            yield Finding("scans", "ok", found)


def check_field_of_view(patient: Patient) -> Iterator[Finding]:
    """Few brains reach out of the grid that scans are brought to.

    Goes by what the stage conform found; before it ran, by scans that are stripped already; for whole heads, in which no
    brain is known yet, by the ICBM152 template's.
    """
    conform = patient.config.preprocess.conform
    crop = np.array(conform.shape) * conform.spacing_mm
    wanted = 1.1 * crop
    if cut := [share for cohort in patient.cohorts() for share in cut_fractions(cohort, conform)]:
        what = f"of {len(cut)} scans conformed so far"
    elif brains := [brain for cohort in patient.cohorts() for brain in stripped_brains(cohort)]:
        cut = [share_outside(brain, conform) for brain in brains]
        wanted = np.max([extent(brain) for brain in brains], axis=0)
        what = f"of {len(cut)} stripped scans looked at, the largest {_millimetres(wanted)}"
    else:
        brain = template_brain()
        cut, wanted = [share_outside(brain, conform)], 1.1 * extent(brain)
        what = f"no brain is known yet; of ICBM152's alone, {_millimetres(extent(brain))}"
    beyond = sum(share > conform.max_cut_fraction for share in cut)
    found = (
        f"{what}, {beyond} ({beyond / len(cut):.0%}) lose more than {conform.max_cut_fraction:.0%} of the brain to the grid"
        f" of {_millimetres(crop)}, at most {max(cut):.1%}"
    )
    shape = [int(-(-side // (4 * conform.spacing_mm)) * 4) for side in np.maximum(wanted, crop)]
    remedy = f"set preprocess.conform.shape to {shape} or more, or a larger preprocess.conform.spacing_mm"
    yield Finding("field of view", "warning", found, remedy) if beyond else Finding("field of view", "ok", found)


def check_disk(patient: Patient) -> Iterator[Finding]:
    """What the plan is expected to write fits on the disk."""
    results = Path("results").resolve()  # which may lie on another disk
    free = shutil.disk_usage(next(one for one in (results, *results.parents) if one.exists())).free
    arguments = ["--snakefile", str(patient.workflow / "Snakefile")]
    try:
        plan = make_plan([*arguments, *(["--config", *patient.settings] if patient.settings else [])])
    except PlanError as error:
        said = [line.strip() for line in str(error).splitlines()]
        first = next((number for number, line in enumerate(said) if "rror" in line), 0)
        yield Finding(
            "plan", "blocker", f"snakemake refuses: {' '.join(said[first : first + 2])}", "see `neuromf plan`"
        )
        return
    if plan.refusal:
        remedy = "`neuromf plan` says which, why and what to do"
        yield Finding("plan", "blocker", "finished models would be trained again", remedy)
    unknown = sorted({job.rule for job in plan.unknown})
    rest = f"; nothing recorded yet of {len(unknown)} rules" if unknown else ""
    found = f"{size(free)} free, {size(plan.bytes)} expected by `neuromf plan`{rest}"
    remedy = "free space, or put results/ on another disk (a symbolic link will do)"
    if plan.bytes > free:
        yield Finding("disk", "blocker", found, remedy)
    elif plan.bytes > NEARLY * free:
        yield Finding("disk", "warning", found, remedy)
    else:
        yield Finding("disk", "ok", found)


def _writable(folder: Path) -> bool:
    """Whether a file can be made in a folder, or the folder in the nearest one that exists."""
    there = next(one for one in (folder.absolute(), *folder.absolute().parents) if one.exists())
    try:
        with tempfile.NamedTemporaryFile(dir=there, prefix=".doctor-"):
            return True
    except OSError:
        return False


def _millimetres(sides: Iterable[float]) -> str:
    return f"{'×'.join(f'{side:.0f}' for side in sides)} mm"
