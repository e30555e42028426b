import functools
import json
from pathlib import Path

from job import codec_of, latent_stores, logged

with logged(snakemake):
    from neuromf import config, tables
    from neuromf.device import choose_device
    from neuromf.latents.statistics import LatentStatistics
    from neuromf.paper import mosaics, style
    from neuromf.training.run import train_run

    @functools.cache
    def codec():
        return codec_of(snakemake)  # loaded for the first picture

    def picture(latents):
        volumes = [codec().decode(z[None])[0, 0].clamp(0, 1).cpu().numpy() for z in latents]
        rows = [mosaics.Row("one step" if n == 0 else "", volumes[n : n + 2]) for n in range(0, len(volumes), 2)]
        return style.as_png(mosaics.mosaic(rows), dpi=100)

    params, resources = snakemake.params, snakemake.resources
    release = Path(params.release)
    released = tables.read_release(release)
    stores = latent_stores(snakemake)
    settings = params.config | {"train": params.config["train"] | json.loads(resources.limits)}
    train_run(
        config.validate(settings),
        stores["train"],
        stores["val"],
        LatentStatistics.read(Path(snakemake.input.statistics)),
        Path(snakemake.output.weights).parent,
        seed=int(snakemake.wildcards.seed),
        release={
            "name": release.stem,
            "sha256": tables.release_sha256(released),
            "modality": tables.release_modality(released),
        },
        codec={"name": stores["train"].metadata["codec"], "sha256": stores["train"].metadata["weights_sha256"]},
        device=choose_device(resources.device),
        checkpoint_folder=Path(resources.checkpoints),
        code=params.code,
        retry=resources.attempt > 1,
        picture=picture,
    )
