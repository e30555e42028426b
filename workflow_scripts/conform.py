from pathlib import Path

from job import logged

with logged(snakemake):
    from neuromf import tables
    from neuromf.config import Conform
    from neuromf.preprocess.conform import conform_shard

    wildcards, params = snakemake.wildcards, snakemake.params
    cohort = tables.read_cohort(Path(f"config/cohorts/{wildcards.cohort}.tsv"))
    conform_shard(
        cohort.shard(int(wildcards.shard), params.shard_size),
        Path(snakemake.input[0]),
        Path(f"results/cohorts/{wildcards.cohort}/preprocessed"),
        Path(snakemake.output[0]),
        Conform(**params.settings),
        code=params.code,
        workers=snakemake.threads,
    )
