"""MODEL_CARD.md of a trained codec: what it is, how it was made and how well it does, from the files that say so."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from neuromf.codec.validate import METRICS
from neuromf.tables import read_json, write_text

_TEMPLATE = """# Model card: codec `{name}`

{purpose}

| | |
|---|---|
| architecture | MONAI `AutoencoderKlMaisi`, channels {channels}, residual blocks {blocks}, {groups} norm groups |
| latent | {latent} channels, a quarter of the volume along each axis |
| size | {parameters} |
| sha256 of codec.safetensors | `{sha256}` |
| code version | {version} |

## Data

{data}

## Recipe

`neuromf.codec.train.train_codec` with the settings below (docs/codec.md), {updates} updates in {minutes} minutes, \
{n_train} training and {n_val} validation scans. The posterior means were divided by {rescaled:.3f} at the end; their \
standard deviation over the training scans is {std:.3f}.

{recipe}

## Figures

{region}. The linear codec keeps as many principal components of 4×4×4 blocks as the VAE has latent channels.

{figures}

## Limits

{limits}
"""


def write_model_card(folder: Path, validations: Mapping[str, Path], *, purpose: str, data: str, limits: str) -> None:
    """Write ``folder``/MODEL_CARD.md of the codec in the folder.

    Args:
        folder: holds codec.json.
        validations: name of a set of scans → JSON that `neuromf.codec.validate.validate_codec` wrote for it.
        purpose: what the codec is for.
        data: what it was trained on.
        limits: what it is not good for.

    Raises:
        ValueError: a validation of other weights.
    """
    about = read_json(folder / "codec.json")
    results = {name: read_json(path) for name, path in validations.items()}
    for name, result in results.items():
        if result["sha256"] != about["sha256"]:
            raise ValueError(f"{validations[name]} is of weights {result['sha256']}, {folder} holds {about['sha256']}")
    made, figures = about["architecture"], about["figures"]
    recipe = "\n".join(f"    {key}: {json.dumps(value)}" for key, value in about["recipe"].items())
    card = _TEMPLATE.format(
        name=about["name"], purpose=purpose, data=data, limits=limits, recipe=recipe,
        channels=made["channels"], blocks=made["residual_blocks"], groups=made["norm_groups"],
        latent=made["latent_channels"], parameters=figures["parameters"], sha256=about["sha256"],
        version=about["code_version"], updates=figures["updates"], minutes=figures["minutes"],
        n_train=figures["n_train"], n_val=figures["n_val"], rescaled=figures["rescaled_by"], std=figures["latent_std"],
        region=next((result["region"] for result in results.values()), "Not validated"), figures=_table(results),
    )  # fmt: skip
    write_text(folder / "MODEL_CARD.md", card)


def _table(results: Mapping[str, Mapping]) -> str:
    """Return a Markdown table of mean figures, one row per set and codec."""
    lines = ["| scans | n | codec | PSNR (dB) | SSIM | MAE |", "|---|---|---|---|---|---|"]
    for name, result in results.items():
        for codec, mean in [*result["mean"].items(), ("difference", result["difference"])]:
            psnr, ssim, mae = (mean[metric] for metric in METRICS)
            sign = "+" if codec == "difference" else ""
            lines.append(
                f"| {name} | {result['n_test']} | {codec} | {psnr:{sign}.2f} | {ssim:{sign}.3f} | {mae:{sign}.4f} |"
            )
    return "\n".join(lines)
