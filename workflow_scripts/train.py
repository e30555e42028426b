import json
from pathlib import Path

from job import latent_stores, logged

with logged(snakemake):
    from neuromf import config, tables
    from neuromf.device import choose_device
    from neuromf.latents.statistics import LatentStatistics
    from neuromf.training.run import train_run

    params, resources = snakemake.params, snakemake.resources
    release = Path(params.release)
    stores = latent_stores(snakemake)
    settings = params.config | {"train": params.config["train"] | json.loads(resources.limits)}
    train_run(
        config.validate(settings),
        stores["train"],
        stores["val"],
        LatentStatistics.read(Path(snakemake.input.statistics)),
        Path(snakemake.output.weights).parent,
        seed=int(snakemake.wildcards.seed),
        release={"name": release.stem, "sha256": tables.file_sha256(release)},
        codec={"name": stores["train"].metadata["codec"], "sha256": stores["train"].metadata["weights_sha256"]},
        device=choose_device(resources.device),
        checkpoint_folder=Path(resources.checkpoints),
        code=params.code,
        retry=resources.attempt > 1,
    )
