from pathlib import Path

from job import logged

with logged(snakemake):
    from neuromf.device import choose_device
    from neuromf.generation.generate import sample_latents, write_latents
    from neuromf.training.checkpoint import load_model

    params, resources = snakemake.params, snakemake.resources
    model = load_model(Path(snakemake.input.weights).parent, choose_device(resources.device))
    nfe = int(snakemake.wildcards.nfe)
    latents = sample_latents(model, range(params.n), params.seed, nfe, resources.batch_size)
    write_latents(Path(snakemake.output[0]), latents)
