"""A codec on preprocessed volumes, beside the linear codec of the same rate: PSNR and SSIM (in the brain's box and over
its voxels), MAE and, where its weights are, LPIPS of each set of scans.

    python benchmarks/codec.py --codec demo --train FOLDER --test phantoms=FOLDER --test ds002748=FOLDER --json out.json

FOLDER is searched for ``*_desc-preproc_*.nii.gz`` (masks left out). The linear codec is fitted on --train. With --card
the model card of the codec's folder is written from the same figures; --purpose, --data and --limits are its prose.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from neuromf.codec.maisi import load_codec
from neuromf.codec.model_card import write_model_card
from neuromf.codec.perceptual import SliceLpips
from neuromf.codec.validate import validate_codec
from neuromf.codec.weights import weights_path
from neuromf.config import Codec
from neuromf.tables import write_json

COLUMNS = (  # title, figure, width, digits
    ("PSNR dB", "psnr", 9, 2),
    ("SSIM", "ssim", 8, 3),
    ("MAE", "mae", 9, 4),
    ("brain: PSNR", "psnr_brain", 13, 2),
    ("SSIM", "ssim_brain", 8, 3),
    ("LPIPS sag.", "lpips_sagittal", 12, 3),
    ("cor.", "lpips_coronal", 7, 3),
    ("ax.", "lpips_axial", 7, 3),
)


def volumes(folder: str) -> list[Path]:
    """Return the preprocessed volumes anywhere under a folder."""
    found = sorted(p for p in Path(folder).rglob("*_desc-preproc_*.nii.gz") if not p.name.endswith("_mask.nii.gz"))
    if not found:
        raise SystemExit(f"no *_desc-preproc_*.nii.gz under {folder}")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--codec", default="demo", help="demo, or a folder, .safetensors or .pt")
    parser.add_argument("--train", required=True, help="folder of volumes that the linear codec is fitted on")
    parser.add_argument("--test", required=True, action="append", metavar="NAME=FOLDER")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--weights-dir", help="folder of LPIPS's weights; default NEUROMF_WEIGHTS")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--card", action="store_true", help="write MODEL_CARD.md beside the weights")
    parser.add_argument("--purpose", default="", help="prose of the card")
    parser.add_argument("--data", default="", help="prose of the card")
    parser.add_argument("--limits", default="", help="prose of the card")
    arguments = parser.parse_args()
    settings = Codec(weights=arguments.codec)
    codec, train = load_codec(settings, device=arguments.device), volumes(arguments.train)
    tests = dict(test.split("=", 1) for test in arguments.test)
    lpips = SliceLpips.load_if_there(arguments.weights_dir)
    with tempfile.TemporaryDirectory() as scratch:
        files = {name: Path(scratch) / f"{name}.json" for name in tests}
        results = {
            name: validate_codec(codec, train, volumes(tests[name]), file, lpips=lpips) for name, file in files.items()
        }
        if arguments.card:
            folder = weights_path(settings).parent
            prose = {"purpose": arguments.purpose, "data": arguments.data, "limits": arguments.limits}
            write_model_card(folder, files, **prose)
    head = "".join(f"{title:>{width}}" for title, _, width, _ in COLUMNS)
    print(f"{'scans':<16}{'n':>4}  {'codec':<12}{head}{'latent σ':>10}")
    for name, result in results.items():
        for kind, mean in [*result["mean"].items(), ("difference", result["difference"])]:
            cells = [
                f"{'–':>{width}}" if mean[figure] is None else f"{mean[figure]:>{width}.{digits}f}"
                for _, figure, width, digits in COLUMNS
            ]
            sigma = f"{result['latent_std']:>10.3f}" if kind == "vae" else ""
            print(f"{name:<16}{result['n_test']:>4}  {kind:<12}{''.join(cells)}{sigma}")
    if arguments.json:
        write_json(arguments.json, results)


if __name__ == "__main__":
    main()
