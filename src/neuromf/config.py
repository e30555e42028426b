"""Typed configuration: the one place where a setting, its default, unit, bounds and source are written.

The defaults are the published method (128³ at 1 mm, MAISI networks). Presets in ``config/presets`` are overlays on
them, ``config/config.yaml`` is an overlay on a preset, and a run of ``runs`` is an overlay on that. The JSON schema
and ``config/README.md`` are generated from this file (``neuromf.config_reference``) and a test holds them equal.
"""

from __future__ import annotations

import math
import reprlib
from collections.abc import Mapping
from datetime import date
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from neuromf.as_written import restored, written
from neuromf.names import NAME_PATTERN, NAME_RULE, nearest

Name = Annotated[str, Field(pattern=NAME_PATTERN)]
Width = Annotated[int, Field(ge=1, le=4096)]  # channels of a level of a network
Blocks = Annotated[int, Field(ge=1, le=16)]  # residual blocks of a level
Side = Annotated[int, Field(ge=8, le=1024)]  # voxels
RESERVED_RUNS = frozenset({"real", "reconstruction", "linear_reconstruction", "noise"})  # rows of the evaluation


class ConfigError(ValueError):
    """A configuration that cannot be used; the message names the key, the value and the remedy."""


def setting(default: Any, description: str, *, unit: str = "", source: str = "", **bounds: Any) -> Any:
    """Declare one setting: its default, what it does, its unit, where the default comes from and its bounds."""
    return Field(default=default, description=description, json_schema_extra={"unit": unit, "source": source}, **bounds)


def section(model: type[BaseModel], description: str) -> Any:
    """Declare a nested group of settings."""
    return Field(default_factory=model, description=description)


class Section(BaseModel):
    """A group of settings; unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)


# --- cohort ---------------------------------------------------------------------------------------------------------


class Phantom(Section):
    """Demo heads made from the ICBM152 template (``neuromf.cohort.phantom``)."""

    seed: int = setting(0, "Seed of the whole phantom cohort; head i depends on (seed, participant) only", ge=0)
    deformation_mm: float = setting(4.0, "Standard deviation of the smooth random displacement", unit="mm", ge=0, le=15)
    noise_percent: tuple[float, float] = setting(
        (1.0, 3.0), "Range of the Rician noise's σ, as a share of the white-matter intensity", unit="%"
    )
    bias_amplitude: tuple[float, float] = setting(
        (0.1, 0.35), "Range of the multiplicative bias field's half-amplitude (log scale)"
    )
    voxel_mm: tuple[float, float] = setting((1.0, 1.5), "Range of the voxel edge lengths", unit="mm")


# --- preprocessing --------------------------------------------------------------------------------------------------


class SkullStrip(Section):
    """Brain extraction."""

    backend: Literal["template", "synthstrip", "mindgrab", "none"] = setting(
        "template", "How the brain mask is found; rows with skull_stripped=true always use `none`"
    )
    template_spacing_mm: float = setting(
        4.0, "Voxel size of the registration of the `template` backend", unit="mm", ge=2, le=6
    )
    border_mm: float = setting(0.0, "Grow (+) or shrink (−) the mask by this distance", unit="mm", ge=-10, le=10)


class BiasField(Section):
    """N4 bias-field correction."""

    shrink_factor: int = setting(
        4, "The field is fitted on an image shrunken by this factor", ge=1, le=16, source="Tustison et al. 2010"
    )
    iterations: tuple[int, ...] = setting(
        (50, 50, 50, 50), "Most iterations at each fitting level", source="SimpleITK default"
    )
    convergence: float = setting(1e-3, "Stop a level when the field's relative change is below this", gt=0)
    spline_distance_mm: float = setting(
        200.0, "Distance between the control points of the first level", unit="mm", gt=0, source="ANTs default"
    )


class Conform(Section):
    """Common grid and intensity range."""

    shape: tuple[Side, Side, Side] = setting((128, 128, 128), "Voxels of the output grid", unit="voxels")
    spacing_mm: float = setting(1.0, "Isotropic voxel size", unit="mm", gt=0, le=8)
    percentiles: tuple[float, float] = setting(
        (0.0, 99.5), "Intensities mapped to 0 and 1", unit="%", source="MAISI / NV-Generate"
    )
    percentile_mask: Literal["brain", "volume"] = setting("brain", "Where the percentiles are taken")
    clip: bool = setting(True, "Clip to [0, 1] after scaling (NV-Generate: false)")
    max_cut_fraction: float = setting(
        0.02, "Warn when more than this share of the brain falls outside the grid", ge=0, le=1
    )

    @model_validator(mode="after")
    def _check(self) -> Conform:
        low, high = self.percentiles
        if not 0 <= low < high <= 100:
            raise ValueError(f"percentiles {self.percentiles} must satisfy 0 <= low < high <= 100")
        if any(n < 8 or n % 4 for n in self.shape):
            raise ValueError(
                f"shape {self.shape}: every side must be at least 8 and a multiple of 4 (the VAE halves twice)"
            )
        return self


class Preprocess(Section):
    """Raw scan to network input."""

    skull_strip: SkullStrip = section(SkullStrip, "Brain extraction")
    bias_field: BiasField = section(BiasField, "N4 bias-field correction")
    conform: Conform = section(Conform, "Common grid and intensity range")


# --- codec ----------------------------------------------------------------------------------------------------------


class Codec(Section):
    """The frozen VAE (MONAI's ``AutoencoderKlMaisi``)."""

    name: Name = setting("maisi", "Name of the folder its latents lie in")
    weights: str | None = setting(
        None, "Path of published .pt or of our .safetensors; `demo` for the shipped codec; `trained` for the rule's own"
    )
    sha256: str | None = setting(None, "Expected hash of the weights file", pattern=r"^[0-9a-f]{64}$")
    channels: tuple[Width, Width, Width] = setting((64, 128, 256), "Channels per level", source="MAISI")
    residual_blocks: tuple[Blocks, Blocks, Blocks] = setting((2, 2, 2), "Residual blocks per level", source="MAISI")
    norm_groups: int = setting(32, "Groups of the group normalisation", ge=1, source="MAISI")
    latent_channels: int = setting(4, "Channels of the latent", ge=1, le=64, source="MAISI")
    window_voxels: int = setting(
        128, "Volumes with a longer side are decoded by sliding window of this side", unit="voxels", ge=32
    )

    @model_validator(mode="after")
    def _check(self) -> Codec:
        if any(width % self.norm_groups for width in self.channels):
            raise ValueError(f"channels {self.channels}: each must be a multiple of norm_groups = {self.norm_groups}")
        return self


class CodecTraining(Section):
    """Training one's own VAE."""

    updates: int = setting(20_000, "Optimiser updates", ge=1)
    batch_size: int = setting(2, "Crops per update", ge=1)
    crop: tuple[int, int, int] = setting((64, 64, 64), "Random crop", unit="voxels", source="MAISI")
    learning_rate: float = setting(1e-4, "Peak learning rate of AdamW (one-cycle)", gt=0, source="MAISI")
    kl_weight: float = setting(1e-7, "Weight of the KL term at the start", ge=0, source="MAISI")
    kl_target: tuple[float, float] = setting(
        (0.9, 1.1), "The KL weight is adapted until the latents' standard deviation is inside", source="MAISI"
    )
    perceptual_weight: float = setting(0.0, "Weight of the LPIPS term (needs the backbone's weights)", ge=0)
    adversarial_weight: float = setting(0.0, "Weight of the patch discriminator's term", ge=0)
    whole_volume_share: float = setting(
        0.0,
        "Share of the run, at its end, that sees whole volumes: the group norms then see what encoding sees",
        ge=0,
        le=1,
    )
    flip_probability: float = setting(0.5, "Left-right flip of a crop", ge=0, le=1)
    gradient_clip: float = setting(1.0, "Largest gradient norm", gt=0)
    ema_half_life: float = setting(
        0.01, "Half-life of the exponential moving average of the weights, as a share of the run", gt=0, le=1
    )
    precision: Literal["auto", "32", "bf16"] = setting(
        "32", "Arithmetic of the forward pass; auto: bf16 where the device is faster in it, else float32"
    )
    validate_every: int = setting(1000, "Updates between validations", ge=1)
    checkpoint_every: int = setting(200, "Updates between checkpoints", ge=1)
    log_every: int = setting(20, "Updates between logged rows", ge=1)
    seed: int = setting(0, "Seed of weights, crops and posterior noise", ge=0)


class CodecGate(Section):
    """What a codec must reach on held-out scans before a flow is trained on its latents (means over scans)."""

    ssim: float = setting(0.90, "Smallest SSIM inside the brain", ge=0, le=1)
    psnr_db: float = setting(30.0, "Smallest PSNR inside the brain", unit="dB", ge=0)
    lpips: float = setting(0.10, "Largest LPIPS in each plane; warns where LPIPS's weights are not there", ge=0)
    action: Literal["stop", "warn"] = setting("stop", "What a codec that misses a threshold does to training")


# --- flow and network -----------------------------------------------------------------------------------------------


def equal_rows(batch: int, share: float) -> int:
    """Return how many rows of a batch have r = t: the share of it, rounded down to whole rows."""
    return math.floor(batch * share + 1e-9)  # a product like 0.29 · 100 lies just below its whole number


class Times(Section):
    """Distribution of (r, t)."""

    distribution: Literal["logit_normal", "uniform"] = setting(
        "logit_normal", "Distribution of t before clipping", source="pMF"
    )
    mean: float = setting(0.8, "Mean of logit(t)", source="pMF")
    std: float = setting(0.8, "Standard deviation of logit(t)", gt=0, source="pMF")
    t_min: float = setting(
        0.05, "Times are clipped to [t_min, 1]; also the floor of the x-prediction's divisor", gt=0, lt=1, source="pMF"
    )
    r_equals_t: float = setting(0.5, "Share of rows with r = t (exact in every batch)", ge=0, le=1, source="iMF")
    r_given_t: Literal["uniform", "pair"] = setting(
        "uniform", "r uniform in (0, t), or the smaller of two draws of the distribution"
    )


class Flow(Section):
    """Objective (docs/design.md §4)."""

    variant: Literal["imf", "meanflow", "rectified_flow"] = setting(
        "imf", "Combined improved MeanFlow, original MeanFlow, or rectified flow"
    )
    prediction: Literal["x", "u"] = setting("x", "What the network outputs", source="pMF")
    times: Times = section(Times, "Distribution of (r, t)")
    p: float | tuple[float, ...] = setting(2.0, "Exponent of the L_p loss, one or per channel")
    channel_weights: tuple[float, ...] | Literal["inverse_variance"] | None = setting(
        None,
        "λ_c per channel; null: all one; `inverse_variance`: ∝ 1/σ_c² with mean 1, σ_c of the train split's latents",
    )
    adaptive: bool = setting(True, "Weight each sample by 1/(L_p + c)^q", source="MeanFlow")
    norm_p: float = setting(
        0.5, "q of the adaptive weight; at 1 the weighted loss reads about 1 while the raw one diverges", ge=0, le=2
    )
    norm_eps: float = setting(0.01, "c of the adaptive weight", gt=0, source="iMF")
    mf_weight: float = setting(1.0, "λ_MF: weight of the MeanFlow term beside the flow-matching term", ge=0)
    mf_ramp: tuple[float, float] = setting(
        (0.0, 0.0),
        "λ_MF is 0 before the first of these shares of the run and rises linearly to mf_weight at the second",
    )
    mf_schedule: Literal["constant", "balanced"] = setting(
        "constant",
        "λ_MF is mf_weight, or mf_weight times what gives both terms gradients of the same norm, measured every 50 updates"
        " (variant imf, fm_rows all, without v_head)",
    )
    tangent: Literal["model", "conditional"] = setting(
        "model", "Tangent of the JVP: the network's own velocity or ε − z0", source="iMF"
    )
    jvp: Literal["exact", "finite_difference"] = setting("exact", "How du/dt is computed")
    fm_rows: Literal["all", "r_equals_t"] = setting(
        "all",
        "Rows of the flow-matching term of variant imf: all, or those with r = t, which cost no pass of their own",
    )
    v_head: bool = setting(
        False, "Variant imf: ṽ is an output of the network's own instead of u(z, t, t); training only", source="iMF"
    )

    @property
    def two_heads(self) -> bool:
        """Whether the network has an output of its own for the instantaneous velocity."""
        return self.v_head and self.variant == "imf"

    @model_validator(mode="after")
    def _check(self) -> Flow:
        begin, end = self.mf_ramp
        if not 0 <= begin <= end <= 1:
            raise ValueError(f"mf_ramp {self.mf_ramp} must satisfy 0 <= begin <= end <= 1")
        if self.mf_schedule == "balanced" and (self.variant, self.fm_rows, self.v_head) != ("imf", "all", False):
            raise ValueError(
                "mf_schedule: balanced measures the two terms' gradients apart, which needs variant: imf, fm_rows: all and"
                " v_head: false; or set mf_schedule to constant"
            )
        if self.two_heads and self.mf_weight == 0:
            raise ValueError(
                "mf_weight: at 0 the network's output proper learns nothing beside v_head; set v_head to false"
            )
        if self.two_heads and end > 0:
            raise ValueError(
                "mf_ramp: with v_head the network's output proper learns nothing while λ_MF is 0; set mf_ramp to [0, 0]"
            )
        return self


class Network(Section):
    """MONAI's MAISI UNet with two time inputs."""

    channels: tuple[Width, ...] = setting((64, 128, 256, 512), "Channels per level", source="NV-Generate")
    attention: tuple[bool, ...] = setting((False, False, True, True), "Self-attention per level", source="NV-Generate")
    head_channels: tuple[int, ...] = setting(
        (0, 0, 32, 32), "Channels per attention head, 0: one head; the middle block: the last", source="NV-Generate"
    )
    residual_blocks: int = setting(2, "Residual blocks per level", ge=1, le=16, source="NV-Generate")
    norm_groups: int = setting(32, "Groups of the group normalisation", ge=1)
    time_embedding: Literal["neuromf", "maisi"] = setting(
        "neuromf", "Waves of t: our own over [0, 1], or MAISI's of 1000·t, which an NV-Generate warm start needs"
    )

    @model_validator(mode="after")
    def _check(self) -> Network:
        if not 1 <= len(self.channels) == len(self.attention) == len(self.head_channels) <= 8:
            raise ValueError("channels, attention and head_channels must have one entry per level, of 1 to 8 levels")
        if any(width % self.norm_groups for width in self.channels):
            raise ValueError(f"channels {self.channels}: each must be a multiple of norm_groups = {self.norm_groups}")
        if any(
            head < 0 or (head and width % head) for head, width in zip(self.head_channels, self.channels, strict=True)
        ):
            raise ValueError(f"head_channels {self.head_channels} must divide channels {self.channels}")
        return self


class Guard(Section):
    """Divergence guard; it compares means of the raw loss with the smallest one so far."""

    warn_at: tuple[float, ...] = setting((3.0, 5.0), "Warn when the raw loss is this many times its minimum")
    stop_at: float = setting(10.0, "Stop then and export the best weights", gt=1)
    window: int = setting(20, "Updates per mean of the raw loss", ge=1)
    max_skipped: int = setting(
        20, "Stop when so many of the last ten windows' updates had no finite loss or gradient and were skipped", ge=1
    )


class Augmentation(Section):
    """Random changes of the normalised latents that training sees, in this order; each has its own probability."""

    enabled: bool = setting(True, "false: none of them, whatever their probabilities")
    flip_left_right: float = setting(0.0, "Probability of a left-right flip", ge=0, le=1)
    flip_anterior_posterior: float = setting(0.0, "Probability of an anterior-posterior flip", ge=0, le=1)
    flip_inferior_superior: float = setting(0.0, "Probability of an inferior-superior flip", ge=0, le=1)
    rotate_axial: float = setting(
        0.0, "Probability of a rotation by 90°, 180° or 270° in the axial plane, whose sides must be equal", ge=0, le=1
    )
    noise: float = setting(0.0, "Probability of added Gaussian noise", ge=0, le=1)
    noise_share: float = setting(0.05, "Standard deviation of the noise, as a share of each channel's σ", gt=0, le=1)
    scale: float = setting(0.0, "Probability of scaling each channel by a factor of its own", ge=0, le=1)
    scale_range: tuple[float, float] = setting((0.95, 1.05), "Range of a channel's factor")
    mixup: float = setting(
        0.0, "Probability of λ·latent + (1 − λ)·another latent of the batch", ge=0, le=1, source="Zhang et al. 2018"
    )
    mixup_alpha: float = setting(
        0.2, "λ follows Beta(mixup_alpha, mixup_alpha)", gt=0, le=10, source="Zhang et al. 2018"
    )

    @model_validator(mode="after")
    def _check(self) -> Augmentation:
        low, high = self.scale_range
        if not 0 < low <= high:
            raise ValueError(f"scale_range {self.scale_range} must satisfy 0 < low <= high")
        return self


class LossMask(Section):
    """The training loss on a random part of each latent's volume, the same for all channels."""

    kind: Literal["none", "block", "voxel"] = setting("none", "The whole volume, random blocks or random voxels of it")
    kept: float = setting(0.5, "Share of blocks or voxels that the loss sees; it is averaged over them", ge=0.25, le=1)
    block: int = setting(
        4, "Side of a block, at most half the latent's shortest side", unit="latent voxels", ge=2, le=16
    )


class Train(Section):
    """Training of the flow."""

    updates: int = setting(100_000, "Optimiser updates", ge=1)
    unit: Literal["updates", "epochs"] = setting(
        "updates",
        "What updates, warmup_updates, validate_every, checkpoint_every and samples_every count; an epoch is as many updates"
        " as there are batches in the train split",
    )
    batch_size: int = setting(16, "Latents per update, of all devices together", ge=1)
    devices: int = setting(
        1, "Processes that share each batch, one GPU each; changes a result by rounding only and causes no re-run", ge=1
    )
    learning_rate: float = setting(1e-4, "Peak learning rate of AdamW", gt=0)
    schedule: Literal["cosine", "constant"] = setting("cosine", "Learning rate after the warm-up")
    warmup_updates: int = setting(1000, "Linear warm-up", ge=0)
    weight_decay: float = setting(1e-4, "Weight decay of AdamW, norms and biases excepted", ge=0)
    gradient_clip: float = setting(1.0, "Largest gradient norm", gt=0)
    ema_half_lives: tuple[float, ...] = setting(
        (0.05, 0.1, 0.2),
        "Half-lives of the exponential moving averages of the weights, as shares of the run; validation chooses which"
        " one is exported",
        source="EDM2",
    )
    augmentation: Augmentation = section(Augmentation, "Random changes of the latents")
    loss_mask: LossMask = section(LossMask, "The loss on a random part of the volume")
    precision: Literal["auto", "32", "bf16"] = setting(
        "32",
        "Arithmetic of the forward pass; auto: bf16 where the device is faster in it, else float32. Tangents of"
        " the JVP are float32, at activations of this arithmetic",
    )
    checkpointing: bool = setting(
        False, "Recompute activations in the backward pass: less memory, a third to a half more time, the same weights"
    )
    compile: bool = setting(
        False,
        "Compile the training step's passes with torch.compile, which takes minutes at the start; rounding changes",
    )
    warm_start: str | None = setting(
        None,
        "Model folder to start from, one of its averages/*.safetensors, or NV-Generate's MR UNet (.pt); `demo` for the"
        " shipped one; null: random weights",
    )
    normalise: Literal["channel", "warm_start"] = setting(
        "channel", "Latents are normalised per channel by the train split's statistics, or as the warm start's were"
    )
    validate_every: int = setting(1000, "Updates between validations", ge=1)
    export: Literal["raw_loss", "sample_distance"] = setting(
        "raw_loss",
        "The validation with the smallest value of this is exported: the sum of the raw losses, steady and free of the"
        " weighting, or the distance of one-step samples from held-out latents, noisy where these are few",
    )
    patience: int | None = setting(None, "Stop after this many validations without a smaller value of `export`", ge=1)
    guard: Guard = section(Guard, "Divergence guard")
    checkpoint_every: int = setting(500, "Updates between checkpoints", ge=1)
    max_hours: float | None = setting(
        None, "Save and end after this time with exit code 75, for queues with a time limit", unit="h", gt=0
    )
    keep_checkpoints: int = setting(2, "Checkpoints kept, the newest", ge=1)
    log_every: int = setting(20, "Updates between logged rows", ge=1)
    samples_every: int | None = setting(
        5000, "Updates between pictures of one-step samples, in the run's folder `progress`; null: none", ge=1
    )
    seeds: tuple[int, ...] = setting((0,), "One model is trained for each seed")

    def counted(self, latents: int) -> Train:
        """Return these settings in updates, for a train split of so many latents."""
        if self.unit == "updates":
            return self
        names = ("updates", "warmup_updates", "validate_every", "checkpoint_every", "samples_every")
        epochs = {name: getattr(self, name) for name in names}
        counts = {name: n and math.ceil(n * latents / self.batch_size) for name, n in epochs.items()}
        return self.model_copy(update=counts | {"unit": "updates"})

    @property
    def from_shipped(self) -> bool:
        """Whether the warm start came with NeuroMF: ``demo``, or a file of `neuromf.training.checkpoint.DEMO`."""
        return self.warm_start is not None and self.warm_start.split("/")[0] == "demo"

    @property
    def from_nv_generate(self) -> bool:
        """Whether the warm start is a published file instead of one of our model folders."""
        return self.warm_start is not None and self.warm_start.endswith(".pt")

    @model_validator(mode="after")
    def _check(self) -> Train:
        if self.normalise == "warm_start" and self.warm_start is None:
            raise ValueError("normalise: warm_start needs a warm_start; use normalise: channel")
        return self


# Settings of `train` that change no weight
NO_RESULT = (
    "seeds",
    "devices",
    "checkpointing",
    "log_every",
    "samples_every",
    "checkpoint_every",
    "keep_checkpoints",
    "max_hours",
)


OF_A_RUN = ("flow", "network", "train")  # what a run may override, beside sample.nfe


def deciding(config: Config) -> dict[str, Any]:
    """Return a configuration as JSON without the settings that change no result, of its runs too."""

    def decide(settings: dict[str, Any]) -> dict[str, Any]:
        kept = {key: value for key, value in settings.items() if key not in ("device", "weights_dir", "retrain")}
        for section, names in (("train", {*NO_RESULT} - {"seeds"}), ("sample", {"batch_size"})):
            if section in kept:
                kept[section] = {key: value for key, value in kept[section].items() if key not in names}
        return kept

    content = decide(config.model_dump(mode="json"))
    return content | {"runs": {run: decide(changes) for run, changes in content["runs"].items()}}


# --- sampling, evaluation, report -----------------------------------------------------------------------------------


class Sample(Section):
    """Generation of the volumes that are evaluated."""

    n: int = setting(100, "Volumes per run, seed and NFE", ge=1)
    seed: int = setting(0, "Noise of sample i depends on (seed, i) only", ge=0)
    nfe: tuple[int, ...] = setting((1, 2, 5, 10, 25, 50), "Numbers of network evaluations")
    batch_size: int = setting(8, "Latents per forward pass; changes no sample", ge=1)


class Evaluate(Section):
    """Evaluation."""

    bootstrap: int = setting(1000, "Bootstrap resamples of scans behind each interval", ge=100)
    confidence: float = setting(0.95, "Confidence of the intervals", gt=0.5, lt=1)
    seed: int = setting(0, "Seed of the resamples", ge=0)
    extractors: tuple[
        Literal["codec", "inception", "squeezenet", "radimagenet_resnet50", "medicalnet_resnet50", "subcortical"], ...
    ] = setting(
        ("codec",),
        "Networks whose features are compared; all but `codec`, which the report needs, have published weights"
        " (docs/evaluation.md)",
    )
    segmenters: tuple[Literal["tissues", "subcortical", "aparc50", "atropos", "synthseg"], ...] = setting(
        (), "Segmenters whose regional volumes are compared (docs/evaluation.md): minutes a scan on a CPU but `tissues`"
    )
    compared: int = setting(
        5000,
        "Scans of a split, and volumes of a folder of samples, whose distributions of features are compared at most; the"
        " search for copies takes all",
        unit="scans",
        ge=2,
    )
    segmented: int = setting(
        256, "Real scans, and volumes of each folder of samples, that are segmented at most", unit="scans", ge=2
    )
    spectrum_k0: float = setting(
        0.25,
        "Spatial frequency above which energy counts as high, as a share of the grid's Nyquist frequency",
        gt=0,
        lt=1,
    )

    @model_validator(mode="after")
    def _check(self) -> Evaluate:
        if "codec" not in self.extractors or len(set(self.extractors)) < len(self.extractors):
            raise ValueError(
                f"evaluate.extractors {self.extractors}: name codec, which the report needs, and each once"
            )
        if len(set(self.segmenters)) < len(self.segmenters):
            raise ValueError(f"evaluate.segmenters {self.segmenters}: name each once")
        return self


class Config(Section):
    """The whole configuration of one workflow."""

    preset: str | None = setting(None, "Overlay of config/presets to start from")
    release: Name = setting("demo", "Release that is trained, sampled and evaluated (config/releases/<release>.tsv)")
    shard_size: int = setting(64, "Scans per preprocessing job; fixed for the life of a cohort", unit="scans", ge=1)
    max_failed_fraction: float = setting(0.1, "A cohort with a larger share of failed scans stops the run", ge=0, le=1)
    weights_dir: str | None = setting(None, "Folder of published weights; null: environment NEUROMF_WEIGHTS")
    device: Literal["auto", "cpu", "cuda"] = setting("auto", "Where networks run; changes no re-run")
    phantom: Phantom = section(Phantom, "Demo heads")
    preprocess: Preprocess = section(Preprocess, "Raw scan to network input")
    codec: Codec = section(Codec, "The frozen VAE")
    codec_training: CodecTraining = section(CodecTraining, "Training one's own VAE")
    codec_gate: CodecGate = section(CodecGate, "What a codec must reach before a flow is trained")
    flow: Flow = section(Flow, "Objective")
    network: Network = section(Network, "MAISI UNet")
    train: Train = section(Train, "Training of the flow")
    sample: Sample = section(Sample, "Generation")
    evaluate: Evaluate = section(Evaluate, "Evaluation")
    runs: dict[Name, dict[str, Any]] = setting({"meanflow": {}}, "Each run's overrides of the settings above")
    retrain: tuple[Name, ...] = setting(
        (),
        "Runs whose finished models this call may train again, the old ones kept; for the command line, not for a file",
    )

    @model_validator(mode="after")
    def _check(self) -> Config:
        if not self.runs:
            raise ValueError("runs must name at least one run, e.g. runs: {meanflow: {}}")
        if unknown := [run for run in self.retrain if run not in self.runs]:
            raise ValueError(f"retrain: {unknown[0]!r} is not in runs{nearest(unknown[0], self.runs)}")
        if taken := sorted(RESERVED_RUNS & set(self.runs)):
            raise ValueError(f"{', '.join(taken)}: the evaluation uses this name for what is no model; rename the run")
        if self.network.time_embedding == "maisi" and self.flow.jvp == "finite_difference":
            raise ValueError(
                "flow.jvp: finite_difference is wrong with network.time_embedding: maisi, whose fastest wave turns by 5"
                " radians in a step; use flow.jvp: exact"
            )
        found = (self.flow.prediction, self.network.time_embedding, self.train.normalise)
        if self.train.from_nv_generate and found != ("u", "maisi", "warm_start"):
            raise ValueError(
                f"train.warm_start {self.train.warm_start}: NV-Generate's network gives a velocity, embeds 1000·t and"
                " scales its latents; set flow.prediction: u, network.time_embedding: maisi and train.normalise:"
                f" warm_start (here {', '.join(found)})"
            )
        self._check_devices()
        equal = equal_rows(self.train.batch_size, self.flow.times.r_equals_t)
        if self.flow.two_heads and self.flow.fm_rows == "r_equals_t" and not equal:
            raise ValueError(
                "flow.fm_rows: r_equals_t leaves a batch no row to train flow.v_head on; raise flow.times.r_equals_t or"
                " train.batch_size, or set flow.fm_rows: all"
            )
        latent, train = [side // 4 for side in self.preprocess.conform.shape], self.train
        if train.augmentation.rotate_axial and latent[0] != latent[1]:
            raise ValueError(
                f"train.augmentation.rotate_axial: latents of {latent} voxels change shape when they are rotated;"
                " set it to 0 or make the first two sides of preprocess.conform.shape equal"
            )
        if train.loss_mask.kind == "block" and train.loss_mask.block > min(latent) // 2:
            raise ValueError(
                f"train.loss_mask.block = {train.loss_mask.block} is too large for latents of {latent} voxels;"
                f" at most {min(latent) // 2}"
            )
        return self

    def _check_devices(self) -> None:
        """Refuse batches whose rows with r < t and with r = t cannot be dealt evenly."""
        batch, devices = self.train.batch_size, self.train.devices
        equal = equal_rows(batch, self.flow.times.r_equals_t)
        parts = {"latents": batch}
        if self.flow.variant != "rectified_flow":
            parts |= {"rows with r < t": batch - equal, "rows with r = t": equal}
        if uneven := [f"{count} {what}" for what, count in parts.items() if count % devices]:
            raise ValueError(
                f"train.devices = {devices}: a batch has {' and '.join(uneven)}, which cannot be dealt evenly; change"
                " train.batch_size or flow.times.r_equals_t"
            )

    def for_run(self, run: str) -> Config:
        """Return the configuration of one run: this one with the run's overrides.

        Raises:
            ConfigError: the run is not in ``runs`` or overrides an unknown key.
        """
        if run not in self.runs:
            raise ConfigError(f"run {run!r} is not in the configuration's runs{nearest(run, self.runs)}")
        return validate(overlay(self.model_dump(mode="json"), self.runs[run]))


# --- reading --------------------------------------------------------------------------------------------------------


def overlay(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``base`` with ``changes`` laid over it; nested mappings merge, everything else is replaced."""
    merged = dict(base)
    for key, value in changes.items():
        old = merged.get(key)
        if isinstance(old, Mapping) and isinstance(value, Mapping) and key != "runs":
            value = overlay(old, value)
        merged[key] = value
    return merged


def validate(settings: Mapping[str, Any]) -> Config:
    """Return the typed configuration.

    Raises:
        ConfigError: an unknown key (with the nearest valid one), a wrong type or a value out of bounds.
    """
    try:
        config = Config.model_validate(settings)
    except ValidationError as error:
        raise ConfigError("\n".join(_explain(e) for e in error.errors())) from None
    for run in config.runs:
        if run_overrides := config.runs[run]:
            _check_run(config, run, run_overrides)
    return config


def load(settings: Mapping[str, Any], presets: Path, texts: Mapping[str, Any] | None = None) -> Config:
    """Return the configuration of ``settings`` laid over its preset in the folder ``presets``.

    Args:
        texts: the same settings as they were written (`neuromf.as_written.written`): a name that YAML made a number of.

    Raises:
        ConfigError: as `validate`, or a preset that does not exist.
    """
    settings = restored(Config, _nulls(settings), texts or {})
    preset = settings.get("preset")
    base: Mapping[str, Any] = {}
    if preset is not None:
        known = {path.stem: path for path in sorted(presets.glob("*.yaml"))}
        if str(preset) not in known:
            raise ConfigError(f"preset: no preset {preset!r} in {presets}{nearest(str(preset), known)}")
        base = restored(Config, read_yaml(known[str(preset)]), written([known[str(preset)]]))
    return validate(overlay(base, settings))


def read_yaml(path: Path) -> dict[str, Any]:
    """Return the mapping in a YAML file; an empty file is an empty mapping.

    Raises:
        ConfigError: the file is no YAML or its top level is no mapping.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except OSError as error:
        remedy = "; run in the folder of a project (README.md), or name another file with --configfile"
        wrong_place = isinstance(error, FileNotFoundError)
        raise ConfigError(f"{path} cannot be read: {error.strerror}{remedy if wrong_place else ''}") from None
    except Exception as error:  # PyYAML raises anything: ValueError (a 13th month), AttributeError, RecursionError
        raise ConfigError(f"{path} is no valid YAML: {_yaml_problem(error)}") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: expected settings as `key: value`, found {type(content).__name__}")
    return content


def _yaml_problem(error: Exception) -> str:
    """Return what PyYAML complains of in one line, with the line of the file where it is known."""
    mark = getattr(error, "problem_mark", None)
    told = getattr(error, "problem", None) or str(error) or type(error).__name__
    if type(error) is ValueError:
        told += "; a text that YAML takes for a date or a number needs quotes"
    return f"line {mark.line + 1}: {told}" if mark else " ".join(told.split())


def _nulls(value: Any) -> Any:
    """Return settings in which the text ``null`` is None: what `snakemake --config` nests, it reads as text."""
    if isinstance(value, Mapping):
        return {key: _nulls(one) for key, one in value.items()}
    return None if value == "null" else value


def _check_run(config: Config, run: str, overrides: Mapping[str, Any]) -> None:
    settings = overlay(config.model_dump(mode="json", exclude={"retrain"}), overrides) | {"runs": {run: {}}}
    try:
        Config.model_validate(settings)
    except ValidationError as error:
        raise ConfigError("\n".join(f"runs.{run}.{_explain(e)}" for e in error.errors())) from None
    parts = [*overrides, *(f"sample.{key}" for key in overrides.get("sample", {}))]
    if shared := [
        part for part in parts if part.split(".")[0] not in OF_A_RUN and part not in ("sample", "sample.nfe")
    ]:
        raise ConfigError(
            f"runs.{run}.{shared[0]}: all runs share this setting, so that they can be compared; set it beside `runs`. A"
            f" run's own are {', '.join(OF_A_RUN)} and sample.nfe"
        )


def _explain(error: Any) -> str:
    """Turn one pydantic error into `key = value: what is wrong, and the nearest valid key`."""
    location = [str(part) for part in error["loc"]]
    key = ".".join(location)
    if not location:  # of settings that do not go together
        return str(error["msg"]).removeprefix("Value error, ")
    if error["type"] == "extra_forbidden":
        fields = _fields_at(location[:-1])
        return f"{key}: unknown key{nearest(location[-1], fields)}"
    told = error["msg"]
    if error.get("ctx", {}).get("pattern") == NAME_PATTERN:
        told, key = NAME_RULE, key.removesuffix(".[key]")
    elif error["type"] in ("string_type", "literal_error") and isinstance(error["input"], int | float | date):
        told += "; in quotes it is a text"
    return f"{key} = {reprlib.repr(error['input'])}: {told}"


def _fields_at(location: list[str]) -> list[str]:
    model: Any = Config
    for part in location:
        field = getattr(model, "model_fields", {}).get(part)
        model = field.annotation if field else None
    return list(getattr(model, "model_fields", {}))
