from pathlib import Path

from job import logged

with logged(snakemake):
    from neuromf import tables
    from neuromf.config import BiasField
    from neuromf.preprocess.bias_field import bias_correct_shard

    wildcards, params = snakemake.wildcards, snakemake.params
    cohort = tables.read_cohort(Path(f"config/cohorts/{wildcards.cohort}.tsv"))
    bias_correct_shard(
        cohort.shard(int(wildcards.shard), params.shard_size),
        Path(snakemake.input[0]),
        Path(f"results/cohorts/{wildcards.cohort}/preprocessed"),
        Path(snakemake.output[0]),
        BiasField(**params.settings),
        code=params.code,
        workers=snakemake.threads,
    )
