from pathlib import Path

from job import logged

with logged(snakemake):
    from neuromf.config import Evaluate
    from neuromf.evaluation.differences import compare_sample_sets

    compare_sample_sets(
        Path(snakemake.input.scans),
        Path(snakemake.input.reference),
        Path(snakemake.resources.cache),
        Evaluate(**snakemake.params.settings),
        Path(snakemake.output[0]),
    )
