from pathlib import Path

from job import logged

with logged(snakemake):
    from neuromf import tables
    from neuromf.cohort.phantom import make_heads, write_dataset_files
    from neuromf.config import Phantom

    wildcards, params = snakemake.wildcards, snakemake.params
    cohort = tables.read_cohort(Path(f"config/cohorts/{wildcards.cohort}.tsv"))
    write_dataset_files(cohort)
    make_heads(
        cohort.shard(int(wildcards.shard), params.shard_size),
        cohort.root,
        Phantom(**params.settings),
        Path(snakemake.output[0]),
        code=params.code,
        workers=snakemake.threads,
    )
