from pathlib import Path

from job import logged

with logged(snakemake):
    from neuromf.evaluation.seeds import compare_seeds

    compare_seeds(Path(snakemake.input[0]), Path(snakemake.output[0]), confidence=snakemake.params.confidence)
