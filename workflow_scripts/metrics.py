from pathlib import Path

from job import logged

with logged(snakemake):
    from neuromf.evaluation.evaluate import merge_metrics

    merge_metrics(
        [Path(part) for part in snakemake.input],
        metrics=Path(snakemake.output.metrics),
        scans=Path(snakemake.output.scans),
    )
