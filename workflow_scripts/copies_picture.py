from pathlib import Path

from job import logged, released

with logged(snakemake):
    from neuromf.paper.copies import draw_copies

    folders = [Path(participants).parent for participants in snakemake.input.samples]
    draw_copies(
        Path(snakemake.input.scans),
        {tuple(one): folder for one, folder in zip(snakemake.params.sample_sets, folders, strict=True)},
        released(snakemake)["train"],
        Path(snakemake.output[0]),
    )
