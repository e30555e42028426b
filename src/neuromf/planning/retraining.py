"""No model is trained again by accident, and none is lost when it is.

Snakemake deletes a job's outputs before it runs the job again. So before any job starts, the folder of each model that would
be trained again is moved to ``runs/<run>/replaced/seed-<s>-<hash>``, or the call is refused where nobody asked for that.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from pathlib import Path

from neuromf.planning.jobs import Job
from neuromf.tables import file_sha256


class RetrainingError(RuntimeError):
    """A call would train again what is trained already; the message names runs, reasons and the setting that allows it."""


def trained_already(jobs: Iterable[Job], folder: Path = Path()) -> list[Job]:
    """Return the jobs of the rule ``train`` whose model was finished before: the stamp of its success is there.

    One that was killed after it left the stamp and before Snakemake noted its success comes to the same model again, from
    its last checkpoint, unless something that decides the model has changed since. Snakemake counts it as interrupted, or,
    once another call has deleted its outputs and been killed in turn, as new.
    """
    return [job for job in jobs if job.rule == "train" and (folder / job.stamp).is_file() and not _goes_on(job, folder)]


def _goes_on(job: Job, folder: Path) -> bool:
    return job.why in ("interrupted", "new") and (folder / job.stamp).read_text(encoding="utf-8") == job.upstream


def refusal(jobs: Iterable[Job], allowed: Collection[str], folder: Path = Path()) -> str:
    """Return why a call with these jobs is refused, or nothing: what `keep_replaced` raises."""
    jobs = list(jobs)
    against = [job for job in trained_already(jobs, folder) if job.wildcards["run"] not in allowed]
    if not against:
        return ""
    lines = [f"  run {job.wildcards['run']}, seed {job.wildcards['seed']} ({job.reason})" for job in against]
    changed = [f"  the raw file of {job.detail} has changed" for job in jobs if job.why == "changed scan"]
    runs = ",".join(sorted({job.wildcards["run"] for job in against} | set(allowed)))
    return "\n".join(
        [
            "this call would train again what is trained already:",
            *lines,
            *changed,
            f"If that is meant, add --config 'retrain=[{runs}]': each old model moves to runs/<run>/replaced/ first. If not,"
            " undo what changed; a new release (`neuromf release create`) or a run of another name trains beside it",
        ]
    )


def keep_replaced(jobs: Iterable[Job], allowed: Collection[str]) -> list[Path]:
    """Move the models that are to be trained again out of the way; call it before any job starts.

    The stamp goes with the model, so a training that is interrupted and goes on needs no second permission.

    Args:
        jobs: of the call; their paths start in the current folder.
        allowed: runs that may be trained again (the setting ``retrain``).

    Returns:
        Where the models are now: ``runs/<run>/replaced/seed-<s>-<first 12 digits of the weights' SHA-256>``.

    Raises:
        RetrainingError: a run that is trained already is not among ``allowed``.
    """
    jobs = list(jobs)
    if message := refusal(jobs, allowed):
        raise RetrainingError(message)
    kept = []
    for job in trained_already(jobs):
        if (model := Path(job.output).parent).is_dir():
            kept.append(_move_away(model))
        Path(job.stamp).unlink()
    return kept


def _move_away(folder: Path) -> Path:
    weights = folder / "model.safetensors"
    name = f"{folder.name}-{file_sha256(weights)[:12] if weights.is_file() else 'without-weights'}"
    target, count = folder.parent / "replaced" / name, 1
    while target.exists():  # the same weights twice, or several folders without: none is written over
        count += 1
        target = folder.parent / "replaced" / f"{name}-{count}"
    target.parent.mkdir(exist_ok=True)
    folder.rename(target)
    return target
