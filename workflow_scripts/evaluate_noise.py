from pathlib import Path

from job import codec_of, logged

with logged(snakemake):
    from neuromf.config import Evaluate
    from neuromf.device import choose_device
    from neuromf.evaluation.evaluate import evaluate_noise
    from neuromf.latents.statistics import LatentStatistics

    params = snakemake.params
    statistics = LatentStatistics.read(Path(snakemake.input.statistics))
    codec = codec_of(snakemake)
    evaluate_noise(
        Path(snakemake.input.reference),
        codec,
        Evaluate(**params.settings),
        release=Path(params.release).stem,
        latent_mean=statistics.mean,
        latent_std=statistics.std,
        latent_shape=codec.latent_shape(params.shape),
        n=params.n,
        seed=params.seed,
        part=Path(snakemake.output[0]),
        cache=Path(snakemake.resources.cache),
        weights_dir=Path(snakemake.resources.weights_dir) if snakemake.resources.weights_dir else None,
        device=choose_device(snakemake.resources.device),
    )
