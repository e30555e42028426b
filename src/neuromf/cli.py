"""The command ``neuromf``."""

from __future__ import annotations

import logging
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from neuromf import __version__
from neuromf.messages import plain_errors

app = typer.Typer(help=__doc__, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
release_app = typer.Typer(help="Frozen lists of scans that models are trained and evaluated on.", no_args_is_help=True)
app.add_typer(release_app, name="release")

TABLES = Path("config/cohorts")
RELEASES = Path("config/releases")


@app.callback()
def main(verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Say more of what is done.")] = False) -> None:
    """NeuroMF: 3D brain MRI synthesis in one network evaluation."""
    logging.basicConfig(level=logging.INFO if verbose else logging.WARNING, format="%(levelname)s: %(message)s")


@app.command()
def version() -> None:
    """Print the version."""
    print(__version__)


@app.command()
def index(
    path: Annotated[Path, typer.Argument(help="BIDS folder, a known download layout or a flat folder of NIfTIs.")],
    cohort: Annotated[str, typer.Option(help="Name of the cohort.")],
    modality: Annotated[list[str] | None, typer.Option(help="Only these; default: T1w and FLAIR.")] = None,
    skull_stripped: Annotated[
        bool | None, typer.Option("--skull-stripped/--whole-head", help="Of all scans found; default: by the layout.")
    ] = None,
    participant: Annotated[
        str | None,
        typer.Option(
            help="Regular expression whose group is the person in an ID or path: '(.+)_[0-9]+'; the rest is the session."
        ),
    ] = None,
    tables: Annotated[Path, typer.Option(help="Folder of the cohort tables.")] = TABLES,
) -> None:
    """Write or extend a cohort's table with the scans found in a folder."""
    from neuromf.cohort.index import index as index_folder

    with _readable_errors():
        print(
            index_folder(
                path, cohort, tables, modality=modality, skull_stripped=skull_stripped, participant=participant
            )
        )


@release_app.command("create")
def release_create(
    name: Annotated[str, typer.Argument(help="Name of the release.")],
    cohort: Annotated[list[str], typer.Option(help="Cohort to draw on; may be given several times.")],
    modality: Annotated[str, typer.Option(help="Modality of the scans.")] = "T1w",
    fractions: Annotated[
        tuple[float, float, float], typer.Option(help="Shares of train, val and test among participants.")
    ] = (0.8, 0.1, 0.1),
    tables: Annotated[Path, typer.Option(help="Folder of the cohort tables.")] = TABLES,
    releases: Annotated[Path, typer.Option(help="Folder of the release tables.")] = RELEASES,
) -> None:
    """Freeze the scans that cohorts hold now, split by a hash of the participant's ID."""
    from collections import Counter

    from neuromf.cohort.find import find_cohort
    from neuromf.cohort.release import create_release, visits_across_splits

    with _readable_errors():
        cohorts = [find_cohort(one, tables) for one in cohort]
        rows = create_release(name, cohorts, releases, modality=modality, fractions=fractions)
    counts = Counter(row.split for row in rows)
    print(
        f"{releases / name}.tsv: {len(rows)} scans ({', '.join(f'{counts[s]} {s}' for s in ('train', 'val', 'test'))})"
    )
    for warning in visits_across_splits(rows):
        typer.secho(f"Warning: {warning}", fg="yellow", err=True)


@app.command()
def generate(
    model: Annotated[str, typer.Option(help="Folder of a trained model, one of its averages/*, or `demo`.")],
    n: Annotated[int, typer.Option(min=1, help="Volumes to generate.")],
    out: Annotated[Path, typer.Option(help="Folder to write to.")],
    seed: Annotated[int, typer.Option(min=0, help="Volume i depends on (model, seed, i) only.")] = 0,
    nfe: Annotated[int, typer.Option(min=1, help="Network evaluations per volume.")] = 1,
    codec: Annotated[str | None, typer.Option(help="The VAE's weights; default: as the model's configuration.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Latents per forward pass; changes no volume.")] = 8,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
) -> None:
    """Generate brain volumes with a trained model: NIfTI, one JSON sidecar each, and participants.tsv."""
    from neuromf.device import choose_device
    from neuromf.generation.find import check_model
    from neuromf.generation.generate import generate as generate_volumes

    with _readable_errors():
        check_model(model)
        generate_volumes(
            model, n=n, seed=seed, out=out, nfe=nfe, codec=codec, batch_size=batch_size, device=choose_device(device)
        )


@app.command()
def evaluate(
    real: Annotated[Path, typer.Option(help="Folder of real, skull-stripped volumes (.nii, .nii.gz).")],
    synthetic: Annotated[Path, typer.Option(help="Folder of generated volumes.")],
    out: Annotated[Path, typer.Option(help="Folder to write to; its cache lets an interrupted call go on.")],
    train: Annotated[
        Path | None, typer.Option(help="Folder of the model's training scans, to look for copies.")
    ] = None,
    extractor: Annotated[
        list[str] | None, typer.Option(help="Name; may be given several times. Default: all whose weights are there.")
    ] = None,
    segmenter: Annotated[
        list[str] | None,
        typer.Option(
            help="tissues, subcortical, aparc50, atropos or synthseg; may be given several times. Default: none."
        ),
    ] = None,
    weights_dir: Annotated[Path | None, typer.Option(help="Folder of published weights; or NEUROMF_WEIGHTS.")] = None,
    codec: Annotated[
        str | None, typer.Option(help="Weights of the extractor `codec`: a path, or `demo`, trained on 3 mm voxels.")
    ] = None,
    spacing: Annotated[
        float | None, typer.Option(min=0.1, help="Voxel size in mm; default: the coarsest found, if they differ.")
    ] = None,
    intensity: Annotated[
        str, typer.Option(help="keep, or percentile: the brain's 99.5th percentile becomes 1.")
    ] = "keep",
    bootstrap: Annotated[int, typer.Option(min=100, help="Resamples of scans behind each interval.")] = 1000,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
) -> None:
    """Compare two folders of volumes: distances, tissue volumes, spectra, copies; tables as parquet, JSON, CSV and LaTeX."""
    from neuromf.codec.maisi import load_codec
    from neuromf.config import Codec, Evaluate
    from neuromf.device import choose_device
    from neuromf.evaluation.compare import evaluate_folders
    from neuromf.paper.comparison import write_comparison

    if intensity not in ("keep", "percentile"):
        raise typer.BadParameter("keep or percentile", param_hint="--intensity")
    with _readable_errors():
        chosen = choose_device(device)
        evaluate_folders(
            real,
            synthetic,
            out,
            train=train,
            extractors=extractor,
            segmenters=segmenter or (),
            codec=load_codec(Codec(weights=codec), weights_dir=weights_dir, device=chosen) if codec else None,
            weights_dir=weights_dir,
            spacing_mm=spacing,
            intensity="keep" if intensity == "keep" else "percentile",
            settings=Evaluate(bootstrap=bootstrap),
            device=chosen,
        )
        print(write_comparison(out))


class _Forwarding(TyperCommand):
    """A command whose unknown arguments are another program's, its `--` included, which would be dropped as our own."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        first = args.index("--") if "--" in args else len(args)
        return super().parse_args(ctx, [*args[:first], *args[first : first + 1], *args[first:]])


@app.command(cls=_Forwarding, context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def plan(
    context: typer.Context,
    max_gpu_hours: Annotated[
        float | None, typer.Option(min=0, help="Refuse (exit code 1) what is expected to take more, or is not known.")
    ] = None,
) -> None:
    """Say what `snakemake` would run and why, on how many scans, and the GPU-hours and disk that earlier jobs let expect.

    All other arguments are Snakemake's: neuromf plan encode_all --config release=first. Exit code 1: Snakemake would refuse
    the call, or it does not keep to --max-gpu-hours.
    """
    from neuromf.planning.plan import describe, make_plan

    with _readable_errors():
        made = make_plan(context.args)
    print(describe(made))
    refused = made.refusal
    if max_gpu_hours is not None and (over := made.over_budget(max_gpu_hours)):
        typer.secho(f"Refused: {over}", fg="red", err=True)
        refused = over
    if refused:
        raise typer.Exit(1)


@app.command()
def doctor(
    settings: Annotated[
        list[str] | None, typer.Argument(help="As for `snakemake --config`: preset=methodology release=first.")
    ] = None,
    workflow: Annotated[Path, typer.Option(help="Folder of the Snakefile.")] = Path(),
) -> None:
    """Check what a run needs: packages, device, memory, weights, disk, field of view. Exit code 1: something blocks it."""
    from neuromf.doctor import examine

    blocked = False
    for finding in examine(workflow, settings or ()):
        print(finding, flush=True)
        blocked |= finding.status == "blocker"
    if blocked:
        raise typer.Exit(1)


def _readable_errors() -> AbstractContextManager[None]:
    """End with the message of an expected error; with --verbose it is a traceback."""
    return plain_errors(traceback=logging.getLogger().isEnabledFor(logging.INFO))
