"""Every reader of files, with a valid file of its kind and ways to spoil it: for the fuzz tests and benchmarks/fuzz.py.

Bytes are flipped, overwritten, cut, doubled and lost; inside checksums and compression too, where they would be refused at
once otherwise: values of JSON and of the header of safetensors, bytes inside gzip, cells of tables.
"""

from __future__ import annotations

import gzip
import json
import os
import resource
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from hypothesis import strategies as st
from safetensors.torch import save_file

from neuromf import config, tables
from neuromf.codec.maisi import build, load_codec
from neuromf.codec.train import write_codec
from neuromf.codec.weights import CodecError
from neuromf.cohort.index import index
from neuromf.evaluation.extractors.base import Extractor
from neuromf.evaluation.features import cached_features
from neuromf.evaluation.folders import survey
from neuromf.evaluation.morphometry import segmentation
from neuromf.evaluation.rows import SPECTRUM_COLUMNS, Part, read_parquet, read_parts, write_parquet, write_parts
from neuromf.evaluation.scans import EvaluationError, Grid, Reference, ScanSet, read_reference, write_reference
from neuromf.flow import MeanFlowUNet
from neuromf.generation.energy import Cost
from neuromf.generation.generate import GenerationError, SampledLatents, read_latents, write_latents
from neuromf.latents.statistics import LatentStatistics, compute_statistics
from neuromf.latents.store import LatentError, LatentStore, tensor_sha256
from neuromf.paper.tables import read_csv
from neuromf.published import PublishedError, read_published
from neuromf.shards import Task, run_shard
from neuromf.tables import TableError
from neuromf.training.checkpoint import (
    CheckpointError,
    Progress,
    export_model,
    load_model,
    load_progress,
    save_progress,
)
from neuromf.training.logbook import Table
from neuromf.volume import VolumeError, read_labels, read_volume, write_volume

SECONDS, MEMORY = 20, 2**31  # of processor time and bytes of one attempt: longer is a hang, more a blow-up
ODD_VALUES = (
    None, True, -1, 0, 1.5, 10**30, 1e308, "", "x", "../../etc", "NaN", "é\u2028\x00", "9" * 5000, [], {}, [[]], [None] * 3,
    {"a": 1},
)  # fmt: skip
ODD_BYTES = (
    b"\x00",
    b"\xff",
    b"\x80",
    b"\x7f\xff",
    b"\xff\xff\xff\xff",
    b"\x7f\xff\xff\xff\xff\xff\xff\xff",
    b"\t",
    b"\n",
    b'"',
)
AFFINE = np.diag([2.0, 2, 2, 1])
CODEC = config.Codec(name="tiny", channels=(4, 8, 8), residual_blocks=(1, 1, 1), norm_groups=2, latent_channels=2)
NETWORK = {
    "channels": [4, 8],
    "attention": [False, False],
    "head_channels": [0, 8],
    "residual_blocks": 1,
    "norm_groups": 4,
}
Bytes = st.SearchStrategy[bytes]


@dataclass(frozen=True)
class Reader:
    """``write(folder)`` makes valid files, of which ``file`` is spoilt by ``spoil``; ``read(folder)`` reads them or raises
    one of ``errors``, whose message says what is wrong."""

    file: str
    write: Callable[[Path], Any]
    read: Callable[[Path], Any]
    errors: tuple[type[Exception], ...]
    spoil: Callable[[bytes], Bytes]

    def attempt(self, folder: Path, content: bytes) -> bool:
        """Read a spoilt file; return whether it was refused. Any other error, a hang or a blow-up is raised."""
        (folder / self.file).write_bytes(content)
        try:
            with limited():
                self.read(folder)
        except self.errors as error:
            assert str(error).strip(), "an error without a message"
            return True
        return False


@contextmanager
def limited() -> Iterator[None]:
    """Raise TimeoutError after some seconds of processor time and MemoryError beyond some memory more than is in use."""

    def late(*_: object) -> None:
        raise TimeoutError(f"no answer in {SECONDS} s")

    pages = int(Path("/proc/self/statm").read_text().split()[0])
    before, handler = resource.getrlimit(resource.RLIMIT_AS), signal.signal(signal.SIGPROF, late)
    started = time.process_time()
    try:
        resource.setrlimit(resource.RLIMIT_AS, (pages * os.sysconf("SC_PAGE_SIZE") + MEMORY, before[1]))
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, handler)
        resource.setrlimit(resource.RLIMIT_AS, before)
    if time.process_time() - started > SECONDS:  # the alarm rang where errors are lost, as in a callback
        late()


# --- how files are spoilt -------------------------------------------------------------------------------------------


@st.composite
def spoilt_bytes(draw: st.DrawFn, whole: bytes) -> bytes:
    """Up to four changes anywhere; half of them in the first 512 bytes, where headers are."""
    content = bytearray(whole)
    for _ in range(draw(st.integers(1, 4))):
        last = max(0, len(content) - 1)
        at = draw(st.integers(0, min(last, 512)) | st.integers(0, last))
        match draw(st.sampled_from(["flip", "write", "cut", "lose", "double", "insert"])):
            case "flip" if content:
                content[at] ^= 1 << draw(st.integers(0, 7))
            case "write":
                new = draw(st.sampled_from(ODD_BYTES) | st.binary(min_size=1, max_size=8))
                content[at : at + len(new)] = new
            case "cut":
                del content[at:]
            case "lose":
                del content[at : at + draw(st.integers(1, 64))]
            case "double":
                content[at:at] = content[at : at + draw(st.integers(1, 64))]
            case _:
                content[at:at] = draw(st.sampled_from(ODD_BYTES) | st.binary(min_size=1, max_size=8))
    return bytes(content)


@st.composite
def spoilt_values(draw: st.DrawFn, tree: Any) -> Any:
    """A tree of JSON with one value replaced, or one key renamed or lost."""
    if isinstance(tree, dict) and tree and draw(st.integers(0, 9)):
        key = draw(st.sampled_from(sorted(tree)))
        if not draw(st.integers(0, 7)):
            return {k: v for k, v in tree.items() if k != key}
        if not draw(st.integers(0, 7)):
            return {"odd" if k == key else k: v for k, v in tree.items()}
        return tree | {key: draw(spoilt_values(tree[key]))}
    if isinstance(tree, list) and tree and draw(st.integers(0, 9)):
        at = draw(st.integers(0, len(tree) - 1))
        return [*tree[:at], draw(spoilt_values(tree[at])), *tree[at + 1 :]]
    if (
        isinstance(tree, str) and tree[:1] in ("{", "[") and draw(st.booleans())
    ):  # JSON inside a text: safetensors' header
        return json.dumps(draw(spoilt_values(json.loads(tree))))
    return draw(st.sampled_from(ODD_VALUES))


def spoilt_json(whole: bytes) -> Bytes:
    return spoilt_bytes(whole) | spoilt_values(json.loads(whole)).map(lambda tree: json.dumps(tree).encode())


def spoilt_safetensors(whole: bytes) -> Bytes:
    """Spoil bytes, or values of the header, with the header's length right."""
    size = int.from_bytes(whole[:8], "little")

    def packed(header: Any) -> bytes:
        text = json.dumps(header).encode()
        return len(text).to_bytes(8, "little") + text + whole[8 + size :]

    return spoilt_bytes(whole) | spoilt_values(json.loads(whole[8 : 8 + size])).map(packed)


def spoilt_inside_gzip(whole: bytes) -> Bytes:
    """Spoil the compressed bytes, or those inside, with the right checksum."""
    return spoilt_bytes(whole) | spoilt_bytes(gzip.decompress(whole)).map(lambda content: gzip.compress(content, 1))


@st.composite
def spoilt_cells(draw: st.DrawFn, whole: bytes) -> bytes:
    """Spoil bytes, or one cell of a table."""
    if draw(st.booleans()):
        return draw(spoilt_bytes(whole))
    rows = [line.split(b"\t") for line in whole.split(b"\n")]
    row = draw(st.sampled_from(rows))
    row[draw(st.integers(0, len(row) - 1))] = str(draw(st.sampled_from(ODD_VALUES))).encode()
    return b"\n".join(b"\t".join(row) for row in rows)


# --- valid files ----------------------------------------------------------------------------------------------------


def _volume() -> np.ndarray:
    return np.random.default_rng(0).uniform(1, 99, (16, 17, 18)).round()


def _write_nii(folder: Path) -> None:
    image = nib.Nifti1Image(_volume().astype(np.int16), AFFINE)
    image.set_qform(AFFINE, code=1)
    image.header.set_slope_inter(0.5, 1)
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"a comment"))
    nib.save(image, folder / "x.nii")


def _write_nifti2(folder: Path) -> None:
    nib.save(nib.Nifti2Image(_volume(), AFFINE), folder / "x.nii.gz")


def _write_gz(folder: Path) -> None:
    write_volume(folder / "x.nii.gz", _volume(), AFFINE, np.int16)


def _write_cohort(folder: Path) -> None:
    scans = tuple(tables.Scan(f"{i}", "a", f"{i}.nii", "T1w", None, i == 1, {"age": "30"}) for i in range(3))
    tables.write_cohort(folder / "study.tsv", tables.Cohort("study", Path("/data"), scans, "bids"))


def _write_release(folder: Path) -> None:
    tables.write_release(folder / "r.tsv", [tables.ReleaseRow(f"{i}", "1", "T1w", "study", "train") for i in range(3)])


def _write_manifest(folder: Path) -> None:
    rows = [tables.ManifestRow(f"sub-{i}_T1w", "ok", "", f"{i}.nii", 9, "ab", "k", {"ml": 1.5}) for i in range(3)]
    tables.write_manifest(folder / "shard.tsv", rows)


def _write_participants(folder: Path) -> None:
    for name in ("01", "02"):
        path = folder / "bids" / f"sub-{name}" / "anat" / f"sub-{name}_T1w.nii.gz"
        path.parent.mkdir(parents=True)
        path.touch()
    tables.write_tsv(folder / "bids" / "participants.tsv", ["participant_id", "age"], [["sub-01", 3], ["sub-02", 4]])


def _index(folder: Path) -> None:
    for old in (folder / "tables").glob("study.*"):
        old.unlink()
    index(folder / "bids", "study", folder / "tables")
    tables.read_cohort(folder / "tables" / "study.tsv")


def _double(inputs: Any, outputs: Any) -> dict[str, float | str]:
    tables.write_text(outputs[0], "made")
    return {"n": 1.0}


def _run_shard(folder: Path) -> None:
    tasks = [Task(f"sub-{i}_T1w", (), (folder / f"{i}.txt",)) for i in range(2)]
    rows = run_shard(tasks, _double, folder / "shard.tsv", settings={}, code="c", workers=1, label="test")
    assert [row.status for row in rows] == ["ok", "ok"]


def _write_yaml(folder: Path) -> None:
    settings = config.Config().model_dump(mode="json") | {"preset": "smoke"}
    (folder / "config.yaml").write_text(json.dumps(settings))


def _write_latents(folder: Path) -> None:
    latents = {f"sub-{i}_T1w": torch.randn(2, 4, 4, 4) for i in range(2)}
    scans = {name: {"key": "k", "sha256": tensor_sha256(latent)} for name, latent in latents.items()}
    header = {
        "codec": "t",
        "weights_sha256": "a",
        "shape": [2, 4, 4, 4],
        "voxel_size_mm": [2.0, 2.0, 2.0],
        "scans": scans,
    }
    save_file(latents, folder / "shard.safetensors", {key: json.dumps(value) for key, value in header.items()})


def _read_store(folder: Path) -> None:
    store = LatentStore([folder / "shard.safetensors"])
    for i in range(len(store)):
        assert store[i].dtype == torch.float32


def _write_statistics(folder: Path) -> None:
    compute_statistics([torch.randn(2, 4, 4, 4) for _ in range(2)]).write(folder / "statistics.json")  # type: ignore[arg-type]


def _write_model(folder: Path) -> None:
    settings = config.validate({"network": NETWORK, "preprocess": {"conform": {"shape": [32, 32, 32]}}})
    about = {
        "config": settings.model_dump(mode="json"),
        "statistics": {"mean": [1.0] * 4, "std": [0.5] * 4},
        "codec": {"name": "c", "sha256": "1"},
        "release": {"name": "r", "sha256": "2"},
    }
    export_model(folder / "model", MeanFlowUNet(settings.network).state_dict(), about)


def _write_checkpoint(folder: Path) -> None:
    save_progress(
        folder, "key", Progress(3, 1.5, {"network.a": torch.randn(3, 4)}, {"skipped": 0, "guard": {"x": [1]}}), keep=2
    )


def _write_samples(folder: Path) -> None:
    about = {"seed": 0, "nfe": 1}
    sampled = SampledLatents(torch.randn(2, 2, 4, 4, 4), (0, 1), about, (Cost(1.0, None),) * 2, {"name": "cpu"})
    write_latents(folder / "latents.safetensors", sampled)


_EXTRACTOR = Extractor("random", "k" * 64, lambda volume, voxel_mm: {"volume": torch.ones(1, 5)})
_CACHED = f"random-{'k' * 16}/aa.safetensors"


def _features(folder: Path) -> None:
    (values,) = cached_features(_volume(), "aa", _EXTRACTOR, folder, 2.0).values()
    assert (values == 1).all()


def _write_reference(folder: Path) -> None:
    scans = ScanSet(("a",), ("b",), *[np.ones((1, 3), np.float32)] * 5)
    write_reference(folder / "reference.safetensors", Reference({"train": scans}, Grid((4, 4, 4), 4.0), {"e": "k"}, {}))


def _write_parts(folder: Path) -> None:
    write_parts(folder / "part.json", [Part("r", "run", metrics=[{"value": 1.5, "metric": "m"}])], {"neuromf": "1"})


def _write_parquet(folder: Path) -> None:
    rows = [{"release": "r", "run": "a", "value": float(i), "n": i, "seed": 1} for i in range(50)]
    write_parquet(folder / "spectra.parquet", rows, SPECTRUM_COLUMNS)


def _write_log(folder: Path) -> None:
    Table(folder / "metrics.csv", ("step", "loss"), 0)
    (folder / "metrics.csv").write_text("step,loss\n1,0.5\n2,0.25\n")


def _write_codec(folder: Path) -> None:
    write_codec(folder, build(CODEC), CODEC, config.CodecTraining(), {})


def _read_codec(folder: Path) -> None:
    load_codec(config.Codec(name="tiny", weights=str(folder)))


def _write_published(folder: Path) -> None:
    torch.save({"state_dict": {"a": torch.ones(3), "b": torch.zeros(2, 2)}, "scale_factor": 1.0}, folder / "x.pt")


_BRAIN = segmentation.Scan("a", "aa", lambda: nib.Nifti1Image(_volume().astype(np.uint8), AFFINE))
_SEGMENTER = segmentation.Segmenter(
    "s", "k" * 64, segmentation.Atlas({}, (), {}),
    lambda image: segmentation.Segmentation(image, {"a": 1.0}, {"a": (0.5, 0.5)}, {}),
)  # fmt: skip


def _segmented(folder: Path) -> None:
    found = segmentation.segment_scan(_BRAIN, _SEGMENTER, folder)
    assert found.labels.shape == (16, 17, 18)


def _write_survey(folder: Path) -> None:
    _write_gz(folder)
    survey([folder / "x.nii.gz"], folder, label="test")
    (kept,) = (folder / "survey").iterdir()
    kept.rename(folder / "kept.json")


def _survey(folder: Path) -> None:
    (folder / "survey" / f"{tables.file_sha256(folder / 'x.nii.gz')}.json").write_bytes(
        (folder / "kept.json").read_bytes()
    )
    survey([folder / "x.nii.gz"], folder, label="test")


_PRESETS = Path(__file__).parents[1] / "config" / "presets"
_STEM = str(_SEGMENTER.stem(Path(), "aa"))
_NII = (VolumeError,)
READERS: dict[str, Reader] = {
    "volume .nii": Reader("x.nii", _write_nii, lambda f: read_volume(f / "x.nii"), _NII, spoilt_bytes),
    "volume .nii.gz": Reader("x.nii.gz", _write_gz, lambda f: read_volume(f / "x.nii.gz"), _NII, spoilt_inside_gzip),
    "volume NIfTI-2": Reader("x.nii.gz", _write_nifti2, lambda f: read_volume(f / "x.nii.gz"), _NII, spoilt_inside_gzip),
    "labels": Reader("x.nii.gz", _write_gz, lambda f: read_labels(f / "x.nii.gz"), _NII, spoilt_inside_gzip),
    "cohort table": Reader(
        "study.tsv", _write_cohort, lambda f: tables.read_cohort(f / "study.tsv"), (TableError,), spoilt_cells
    ),
    "cohort sidecar": Reader(
        "study.json", _write_cohort, lambda f: tables.read_cohort(f / "study.tsv"), (TableError,), spoilt_json
    ),
    "release": Reader("r.tsv", _write_release, lambda f: tables.read_release(f / "r.tsv"), (TableError,), spoilt_cells),
    "manifest": Reader(
        "shard.tsv", _write_manifest, lambda f: tables.read_manifest(f / "shard.tsv"), (TableError,), spoilt_cells
    ),
    "participants.tsv": Reader("bids/participants.tsv", _write_participants, _index, (), spoilt_cells),
    "journal": Reader(".shard.journal", _run_shard, _run_shard, (), spoilt_bytes),
    "config": Reader(
        "config.yaml", _write_yaml, lambda f: config.load(config.read_yaml(f / "config.yaml"), _PRESETS),
        (config.ConfigError,), spoilt_json,
    ),
    "latents": Reader("shard.safetensors", _write_latents, _read_store, (LatentError,), spoilt_safetensors),
    "statistics": Reader(
        "statistics.json", _write_statistics, lambda f: LatentStatistics.read(f / "statistics.json"), (LatentError,),
        spoilt_json,
    ),
    "model.json": Reader(
        "model/model.json", _write_model, lambda f: load_model(f / "model"), (CheckpointError, config.ConfigError),
        spoilt_json,
    ),
    "model.safetensors": Reader(
        "model/model.safetensors", _write_model, lambda f: load_model(f / "model"), (CheckpointError,), spoilt_safetensors
    ),
    "checkpoint": Reader(
        "update-00000003.safetensors", _write_checkpoint, lambda f: load_progress(f, "key"), (), spoilt_safetensors
    ),
    "generated latents": Reader(
        "latents.safetensors", _write_samples, lambda f: read_latents(f / "latents.safetensors"), (GenerationError,),
        spoilt_safetensors,
    ),
    "feature cache": Reader(_CACHED, _features, _features, (), spoilt_safetensors),
    "reference": Reader(
        "reference.safetensors", _write_reference, lambda f: read_reference(f / "reference.safetensors", []),
        (EvaluationError,), spoilt_safetensors,
    ),
    "evaluation part": Reader("part.json", _write_parts, lambda f: read_parts(f / "part.json"), (TableError,), spoilt_json),
    "parquet": Reader(
        "spectra.parquet", _write_parquet, lambda f: read_parquet(f / "spectra.parquet"), (TableError,), spoilt_bytes
    ),
    "training log": Reader(
        "metrics.csv", _write_log, lambda f: Table(f / "metrics.csv", ("step", "loss"), 5), (), spoilt_bytes
    ),
    "CSV of the report": Reader(
        "metrics.csv", _write_log, lambda f: read_csv(f / "metrics.csv"), (TableError,), spoilt_bytes
    ),
    "codec.json": Reader("codec.json", _write_codec, _read_codec, (CodecError,), spoilt_json),
    "codec.safetensors": Reader("codec.safetensors", _write_codec, _read_codec, (CodecError,), spoilt_safetensors),
    "published .pt": Reader("x.pt", _write_published, lambda f: read_published(f / "x.pt"), (PublishedError,), spoilt_bytes),
    "segmentation": Reader(f"{_STEM}.json", _segmented, _segmented, (), spoilt_json),
    "segmentation labels": Reader(f"{_STEM}.nii.gz", _segmented, _segmented, (), spoilt_inside_gzip),
    "survey of a folder": Reader("kept.json", _write_survey, _survey, (), spoilt_json),
}  # fmt: skip
