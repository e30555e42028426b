from pathlib import Path

from job import logged

with logged(snakemake):
    from neuromf.paper.runs import write_run_tables

    write_run_tables(
        Path(snakemake.input.differences), Path(snakemake.input.seed_tests), Path(snakemake.output[0]).parent
    )
