from pathlib import Path

from job import logged, released

with logged(snakemake):
    from neuromf.config import Evaluate
    from neuromf.device import choose_device
    from neuromf.evaluation.morphometry.evaluate import evaluate_real_regions

    evaluate_real_regions(
        released(snakemake),
        Path(snakemake.input.nearest),
        Evaluate(**snakemake.params.settings),
        release=Path(snakemake.params.release).stem,
        n=snakemake.params.n,
        cache=Path(snakemake.resources.cache),
        part=Path(snakemake.output[0]),
        weights_dir=Path(snakemake.resources.weights_dir) if snakemake.resources.weights_dir else None,
        device=choose_device(snakemake.resources.device),
    )
