from pathlib import Path

from job import logged, released

with logged(snakemake):
    from neuromf.codec.train import train_codec
    from neuromf.config import Codec, CodecTraining
    from neuromf.device import choose_device

    params, resources = snakemake.params, snakemake.resources
    volumes = released(snakemake)
    folder = Path(snakemake.output.weights).parent
    train_codec(
        list(volumes["train"].values()),
        list(volumes["val"].values()),
        Codec(**params.codec),
        CodecTraining(**params.settings),
        folder,
        device=choose_device(resources.device),
        weights_dir=Path(resources.weights_dir) if resources.weights_dir else None,
        workspace=folder / "checkpoints",
        code=params.code,
    )
