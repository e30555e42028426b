"""Find a model by its name, or say which there are."""

from __future__ import annotations

from pathlib import Path

from neuromf.names import nearest
from neuromf.training.checkpoint import ABOUT, WEIGHTS, CheckpointError, model_files, model_folder


def check_model(name: str, results: Path = Path("results")) -> None:
    """Refuse a name that is no model: neither its folder, nor one of the folder's files, nor ``demo``.

    Raises:
        CheckpointError: with the nearest of the models in ``results``.
    """
    absent = [file for file in model_files(model_folder(name)) if not file.is_file()]
    if not absent:
        return
    trained = [str(file.parent) for file in results.glob(f"releases/*/runs/*/seed-*/{ABOUT}")]
    raise CheckpointError(
        f"no model {name!r}: {absent[0]} does not exist; a model folder holds {WEIGHTS} and {ABOUT}, `snakemake` makes"
        f" results/releases/<release>/runs/<run>/seed-<s>, and `demo` comes with NeuroMF{nearest(name, ['demo', *trained])}"
    )
