from pathlib import Path

from job import codec_of, logged

with logged(snakemake):
    from neuromf import tables
    from neuromf.latents.encode import encode_shard

    wildcards, params = snakemake.wildcards, snakemake.params
    cohort = tables.read_cohort(Path(f"config/cohorts/{wildcards.cohort}.tsv"))
    encode_shard(
        cohort.shard(int(wildcards.shard), params.shard_size),
        Path(snakemake.input.manifest),
        Path(snakemake.output.manifest),
        Path(snakemake.output.latents),
        codec_of(snakemake),
        code=params.code,
    )
