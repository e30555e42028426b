from pathlib import Path

from job import latent_stores, logged

with logged(snakemake):
    from neuromf.config import Evaluate
    from neuromf.evaluation.latents import describe_latents
    from neuromf.latents.statistics import LatentStatistics

    describe_latents(
        latent_stores(snakemake)["train"],
        LatentStatistics.read(Path(snakemake.input.statistics)),
        Evaluate(**snakemake.params.settings),
        Path(snakemake.output[0]),
    )
