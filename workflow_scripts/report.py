from pathlib import Path

from job import logged

with logged(snakemake):
    from neuromf.paper.report.build import ReportInputs, SampleSet, TrainingRun, build_report
    from neuromf.provenance import git_commit

    def stage_of(manifest: Path) -> str:
        return "encode" if manifest.parts[3] == "latents" else manifest.parent.name

    params, release_folder = snakemake.params, Path(snakemake.output.page).parents[1]
    stages = {}
    for path in map(Path, snakemake.input.manifests):
        stages.setdefault(path.parts[2], {}).setdefault(stage_of(path), []).append(path)
    inputs = ReportInputs(
        release=release_folder.name,
        release_table=Path(snakemake.input.release),
        manifests=stages,
        metrics=Path(snakemake.input.metrics),
        scans=Path(snakemake.input.scans),
        reconstructions=Path(snakemake.input.reconstructions),
        codec_gate=Path(snakemake.input.codec_gate),
        codec_picture=Path(snakemake.input.codec_picture),
        latents=Path(snakemake.input.latents),
        spectra=Path(snakemake.input.spectra),
        copies_picture=Path(snakemake.input.copies_picture),
        differences=Path(snakemake.input.differences),
        seed_tests=Path(snakemake.input.seed_tests),
        samples=[
            SampleSet(run, seed, nfe, release_folder / f"samples/{run}/seed-{seed}/nfe-{nfe}")
            for run, seed, nfe in params.sample_sets
        ],
        training=[
            TrainingRun(run, seed, release_folder / f"runs/{run}/seed-{seed}") for run, seed in params.trained_models
        ],
        config=params.config,
        git_commit=git_commit(Path(__file__).parent),
    )
    output = snakemake.output
    build_report(inputs, page=Path(output.page), picture=Path(output.picture), table=Path(output.table))
