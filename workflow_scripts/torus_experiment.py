from pathlib import Path

from job import logged

with logged(snakemake):
    from neuromf.training.toy import torus_experiment

    torus_experiment(Path(snakemake.output.rows).parent, updates=snakemake.params.updates, seed=snakemake.params.seed)
