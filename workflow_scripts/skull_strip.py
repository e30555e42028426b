from pathlib import Path

from job import logged

with logged(snakemake):
    from neuromf import tables
    from neuromf.config import SkullStrip
    from neuromf.preprocess.skull_strip import skull_strip_shard

    wildcards, params, resources = snakemake.wildcards, snakemake.params, snakemake.resources
    cohort = tables.read_cohort(Path(f"config/cohorts/{wildcards.cohort}.tsv"))
    skull_strip_shard(
        cohort.shard(int(wildcards.shard), params.shard_size),
        cohort.root,
        Path(f"results/cohorts/{wildcards.cohort}/preprocessed"),
        Path(snakemake.output[0]),
        SkullStrip(**params.settings),
        code=params.code,
        workers=snakemake.threads,
        weights_dir=Path(resources.weights_dir) if resources.weights_dir else None,
        device=resources.device,
    )
