"""What every script of the workflow shares: its log file, errors that a reader can act on, and the release's files."""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

SOURCES = Path(__file__).parents[1] / "src"
sys.path.insert(0, str(SOURCES))  # the checkout whose workflow runs, also where packages alone are installed
os.environ["PYTHONPATH"] = os.pathsep.join([str(SOURCES), *filter(None, [os.environ.get("PYTHONPATH")])])

from neuromf import gpu, tables


@contextmanager
def logged(snakemake: Any) -> Iterator[None]:
    """Log to the rule's log file; on the terminal an error shows as its message alone, the log has the traceback."""
    threading.Thread(target=_end_with_workflow, args=(int(os.environ["NEUROMF_WORKFLOW"]),), daemon=True).start()
    file = logging.FileHandler(snakemake.log[0], mode="w", encoding="utf-8")
    terminal = logging.StreamHandler()
    terminal.setLevel(logging.WARNING)
    logging.basicConfig(level=logging.INFO, handlers=[file, terminal], format="%(asctime)s %(levelname)s %(message)s")
    logging.captureWarnings(True)
    try:
        resources = snakemake.resources
        gpu.claim(int(resources.get("gpus_taken", resources.get("gpu", 0))))  # before anything loads PyTorch
        yield
        if made_from := snakemake.resources.get("stamp"):
            tables.write_text(Path(made_from), snakemake.params.upstream)
    except Exception as error:
        with Path(snakemake.log[0]).open("a", encoding="utf-8") as log:
            traceback.print_exc(file=log)
        print(f"{snakemake.rule}: {type(error).__name__}: {error}", file=sys.stderr)
        raise SystemExit(1) from None


def _end_with_workflow(workflow: int) -> None:
    """End this job when the workflow's process was killed: the next run starts the job again, and two must not write.

    That process need not be the parent (a shell may stay between), and may be gone before this job looks for it.
    """
    with suppress(psutil.NoSuchProcess):
        process = psutil.Process(workflow)
        while process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
            time.sleep(1)
    os._exit(1)


def by_cohort(paths: Iterable[str]) -> dict[str, list[Path]]:
    """Group files below results/cohorts/<cohort>/ by their cohort."""
    groups: dict[str, list[Path]] = {}
    for path in map(Path, paths):
        groups.setdefault(path.parts[2], []).append(path)
    return groups


def released(snakemake: Any) -> dict[str, dict[str, Path]]:
    """Return split -> scan -> file of the release, from the manifests among the job's inputs."""
    rows = tables.read_release(Path(snakemake.params.release))
    return tables.released_files(rows, by_cohort(snakemake.input.manifests))


def codec_of(snakemake: Any) -> Any:
    """Load the frozen codec of the job."""
    from neuromf.codec.maisi import load_codec
    from neuromf.config import Codec
    from neuromf.device import choose_device

    settings = {key: value for key, value in snakemake.params.codec.items() if key != "identity"}
    return load_codec(
        Codec(**settings),
        weights_dir=snakemake.resources.weights_dir or None,
        trained=Path(f"results/codecs/{settings['name']}"),
        device=choose_device(snakemake.resources.device),
    )


def latent_stores(snakemake: Any) -> dict[str, Any]:
    """Return the latents of the release's splits; scans that failed on the way are left out."""
    from neuromf.latents.store import LatentStore

    rows = tables.read_release(Path(snakemake.params.release))
    encoded = tables.succeeded(rows, by_cohort(snakemake.input.manifests))
    codec = Path(snakemake.input.manifests[0]).parent.name
    return {
        split: LatentStore.of_release([row for row in encoded if row.split == split], Path("results/cohorts"), codec)
        for split in tables.SPLITS
    }
