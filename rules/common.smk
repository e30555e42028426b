# The typed configuration, the tables, and the functions that name the rules' inputs and parameters.

import atexit
import json
import os
import shlex
import sys
from pathlib import Path

from neuromf import config as configuration
from neuromf import environment, tables
from neuromf.as_written import written
from neuromf.codec.weights import codec_identity, perceptual_identity
from neuromf.cohort.find import find_release
from neuromf.lock import remove_stale_locks
from neuromf.planning.jobs import planned_jobs, write_call
from neuromf.planning.lost import bring_back_table, keep_table, lost_note, note_failures_that_pass, note_lost_files
from neuromf.planning.raw import changed_note, changed_scans, note_changed_scans
from neuromf.planning.retraining import keep_replaced
from neuromf.provenance import code_hash
from neuromf.training.interruption import idle_attempts

PROJECT = Path(str(workflow.current_basedir)).parent
if refusal := environment.path_refusal(PROJECT):
    raise configuration.ConfigError(refusal)
if Path(sys.executable).exists():  # Snakemake writes it into its jobs' command lines as it is (its issue 2645)
    sys.executable = shlex.quote(sys.executable)
CONFIG = configuration.load(
    config,
    PROJECT / "config" / "presets",
    written(["config/config.yaml", *workflow.overwrite_configfiles], workflow.config_settings.config_args or ()),
)
RELEASE_TABLE = f"config/releases/{CONFIG.release}.tsv"
RELEASE, COHORTS = find_release(CONFIG.release)
RELEASE_FOLDER = f"results/releases/{CONFIG.release}"
CODEC_FOLDER = f"results/codecs/{CONFIG.codec.name}"
CODEC_GATE = f"{RELEASE_FOLDER}/evaluation/codec_gate.tsv"
STAGES = ("skull_strip", "bias_correct", "conform")
MANIFEST = "results/cohorts/{cohort}/preprocessed/manifests/{stage}/shard-{shard}.tsv"
CONFORMED = MANIFEST.replace("{stage}", "conform")
HEADS = "results/cohorts/{cohort}/raw/manifests/shard-{shard}.tsv"
ENCODED = "results/cohorts/{cohort}/latents/{codec}/shard-{shard}.tsv"
LATENTS = "results/cohorts/{cohort}/latents/{codec}/shard-{shard}.safetensors"
INTERVALS = CONFIG.evaluate.model_dump(mode="json", include={"bootstrap", "confidence", "seed"})


wildcard_constraints:
    cohort="[A-Za-z0-9_-]+",
    shard=r"\d{4}",
    run="|".join(CONFIG.runs),
    seed=r"\d+",
    nfe=r"\d+",


ALONE = workflow.is_main_process and remove_stale_locks(Path(".snakemake"))
os.environ.update(NEUROMF_WORKFLOW=str(os.getpid()))  # jobs end with it
if plan := os.environ.get("NEUROMF_PLAN"):  # `neuromf plan` asks what this dry run would do
    atexit.register(write_call, Path(plan), workflow, CONFIG.model_dump(mode="json"))


# --- resources ------------------------------------------------------------------------------------------------------
# Memory in MB and time in minutes are what a cluster's job asks for. A job that is tried again asks for more of both. What
# jobs took is under results/benchmarks; a cluster's job also holds two Snakemakes, of some 200 MB each.


def grows(amount):
    """Resource function: the amount for the first attempt, twice as much for the second, and so on."""
    return lambda wildcards, attempt: amount * attempt


def pool(worker_mb):
    """Resources of a job whose threads are processes, each with a scan of its own."""
    return {
        "mem_mb": lambda wildcards, threads, attempt: (1000 + worker_mb * threads) * attempt,
        "runtime": grows(120),
    }


def retries(times):
    """A rule's retries. In a cluster's job Snakemake is started again and would retry too, inside the job and its limits."""
    return times if workflow.is_main_process else 0


def checkpoints(wildcards):
    return f"{RELEASE_FOLDER}/checkpoints/{wildcards.run}-{wildcards.seed}"


def training_memory(wildcards, attempt):
    """More after attempts that came to nothing, as those that run out of memory do; not after an interruption."""
    idle = idle_attempts(Path(checkpoints(wildcards))) if attempt > 1 else 0
    return 8000 * training_devices(wildcards) * (1 + idle)


def check_job_arrays():
    """Snakemake's Slurm plugin (2.8.0, its issue 473) drops jobs of an array that were not all selected at once, and waits
    for them for ever: refuse what would have Snakemake select fewer."""
    if not getattr(workflow.executor_settings, "array_jobs", None):
        return
    rate = workflow.scheduling_settings.max_jobs_per_timespan.max_jobs
    limits = [name for name in workflow.global_resources if not name.startswith("_")]
    if min(workflow.resource_settings.nodes, rate) < len(workflow.dag) or limits:
        raise WorkflowError(
            f"Job arrays (slurm-array-jobs) need all of the {len(workflow.dag)} jobs to be submitted as they become ready:"
            " --jobs unlimited, --max-jobs-per-timespan 100000/1s and no --resources; or do without: --slurm-array-jobs ''"
        )


CPU_JOB = {"mem_mb": grows(4000), "runtime": grows(120)}
NETWORK_JOB = {"mem_mb": grows(6000), "runtime": grows(120), "gpu": 0 if CONFIG.device == "cpu" else 1}
EVALUATION_JOB = NETWORK_JOB | {  # a description of each real scan, read or made: 0.2 MB and at most some three seconds
    "mem_mb": grows(6000 + len(RELEASE) // 5),
    "runtime": grows(120 + len(RELEASE) // 20),
}


def network_threads():
    """Threads of a network's job: it leaves the cores' shares of the other GPUs to the jobs that these compute for."""
    gpus, cores = (workflow.global_resources.get(name).value for name in ("gpu", "_cores"))
    return max(1, min(32, cores // gpus)) if gpus and cores and NETWORK_JOB["gpu"] else 32


# --- cohorts and shards ---------------------------------------------------------------------------------------------


def used_rows(cohort):
    return Path(f"results/cohorts/{cohort}/rows_in_use.txt")


def used_shard_size(cohort):
    return Path(f"results/cohorts/{cohort}/shard_size_in_use.txt")


for name in COHORTS:
    tables.check_append_only(Path(f"config/cohorts/{name}.tsv"), COHORTS[name].scans, used_rows(name))
    tables.check_shard_size(name, CONFIG.shard_size, used_shard_size(name))
tables.check_release(Path(RELEASE_TABLE), RELEASE, COHORTS)


def record_use_of_cohorts():
    for name in COHORTS:
        tables.record_use(COHORTS[name].scans, used_rows(name))
        tables.write_text(used_shard_size(name), f"{CONFIG.shard_size}\n")


def shards(cohort):
    return [f"{k:04d}" for k in range(COHORTS[cohort].shard_count(CONFIG.shard_size))]


def released_shards(cohort):
    """The shards that hold a scan of the release: growth of the cohort adds none."""
    wanted = {row.scan_id for row in RELEASE if row.cohort == cohort}
    rows = enumerate(COHORTS[cohort].scans)
    return sorted({f"{i // CONFIG.shard_size:04d}" for i, scan in rows if scan.scan_id in wanted})


def shard_rows(wildcards):
    """Hash of a shard's rows: the job runs again when one is added."""
    scans = COHORTS[wildcards.cohort].shard(int(wildcards.shard), CONFIG.shard_size)
    return tables.content_hash([vars(scan) for scan in scans])


def lost(manifest):
    """Input function of a param: what of the shard was found to be lost or to be tried again, when last something was."""
    return lambda wildcards: lost_note(Path(manifest.format(**wildcards)))


def raw_manifest(cohort, shard):
    """The manifest of the stage that reads the raw scans."""
    return Path(MANIFEST.format(cohort=cohort, stage=STAGES[0], shard=f"{int(shard):04d}"))


def changed_raw(wildcards):
    """Which raw files of the shard are others than when they were first read."""
    return changed_note(raw_manifest(**wildcards))


def manifests(cohort, stage):
    return [MANIFEST.format(cohort=cohort, stage=stage, shard=shard) for shard in shards(cohort)]


def failed_table(cohort):
    return f"results/cohorts/{cohort}/preprocessed/failed.tsv"


def latent_shards(cohort, pattern):
    """The files of a cohort's latents; `pattern` is LATENTS or ENCODED, their manifests."""
    return [pattern.format(cohort=cohort, codec=CONFIG.codec.name, shard=shard) for shard in shards(cohort)]


def raw_heads(wildcards):
    """A phantom cohort's heads are made by a rule; other cohorts' scans are there."""
    return HEADS.format(**wildcards) if COHORTS[wildcards.cohort].source == "phantom" else []


def tried_again(cohort):
    """Manifests whose failures may pass, beside those of the preprocessing; their files are not looked for."""
    heads = [HEADS.format(cohort=cohort, shard=shard) for shard in shards(cohort)]
    return latent_shards(cohort, ENCODED) + heads


if ALONE:
    for path in note_lost_files(Path(p) for cohort in COHORTS for stage in STAGES for p in manifests(cohort, stage)):
        logger.warning(
            f"{os.path.normpath(path)} is gone or of another size than its manifest says; its shard makes it again"
        )
    note_failures_that_pass(Path(p) for cohort in COHORTS for p in tried_again(cohort))
    for name, cohort in COHORTS.items():
        if cohort.source != "phantom":  # whose heads are made here
            where = lambda shard, name=name: raw_manifest(name, shard)
            for scan in note_changed_scans(cohort, CONFIG.shard_size, where, logger.warning):
                logger.warning(f"the raw file of {scan} (cohort {name}) has changed; the scan is made again")


def released_changes():
    """The release's raw scans that are others than when they were first read; none is as if nobody had looked."""
    wanted = {(row.cohort, row.scan_id) for row in RELEASE}
    changed = {
        f"{cohort}/{scan}": sha256
        for cohort in COHORTS
        for shard in shards(cohort)
        for scan, sha256 in changed_scans(raw_manifest(cohort, shard)).items()
        if (cohort, scan) in wanted
    }
    return [changed] if changed else []


# --- releases -------------------------------------------------------------------------------------------------------
# A release's jobs read shard files that change whenever their cohort grows, and growth must not retrain its models. So
# they carry a param `upstream`, a hash of all that decides what those files hold for the release, and leave it in a stamp
# when they succeed. While the stamp is right the files are ancient(): their times and makers count for nothing. Else they
# are plain inputs, since Snakemake looks at no param of a job that waits for another one.


def stamp(rule, wildcards=""):
    return f"{RELEASE_FOLDER}/.made_from/{'-'.join([rule, *map(str, wildcards)])}"


def settled(names, rule, wildcards, upstream):
    """The files, ancient() while the stamp says that nothing which decides the job's result has changed."""
    made_from = Path(stamp(rule, wildcards))
    unchanged = made_from.is_file() and made_from.read_text() == upstream
    return [ancient(name) for name in names] if unchanged else names


def released(pattern, rule, upstream):
    """Input function: the files of the release's shards, for a rule that carries `upstream`, a hash or its function."""

    def files(wildcards):
        names = [
            pattern.format(cohort=c, shard=s, codec=CONFIG.codec.name) for c in COHORTS for s in released_shards(c)
        ]
        return settled(names, rule, wildcards, upstream(wildcards) if callable(upstream) else upstream)

    return files


def quality_gates(wildcards=None):
    return [ancient(failed_table(cohort)) for cohort in COHORTS]


GATE_TABLES = [Path(CODEC_GATE), *(Path(failed_table(cohort)) for cohort in COHORTS)]


def keep_gate_tables():
    for table in GATE_TABLES:
        keep_table(table)


if ALONE:
    for table in GATE_TABLES:
        bring_back_table(table)


def trained_codec(wildcards=None):
    """The codec's weights as an input, where a rule makes them."""
    return f"{CODEC_FOLDER}/codec.safetensors" if CONFIG.codec.weights == "trained" else []


def weights_folder():
    return CONFIG.weights_dir or os.environ.get("NEUROMF_WEIGHTS", "")


def code(script, function):
    """Hash of what a job computes with: its script's statements and the function behind it."""
    return code_hash(function, PROJECT / f"workflow_scripts/{script}.py")


CODE = {
    "phantom": code("phantom", "neuromf.cohort.phantom:make_heads"),
    "skull_strip": code("skull_strip", "neuromf.preprocess.skull_strip:skull_strip_shard"),
    "bias_correct": code("bias_correct", "neuromf.preprocess.bias_field:bias_correct_shard"),
    "conform": code("conform", "neuromf.preprocess.conform:conform_shard"),
    "train_codec": code("train_codec", "neuromf.codec.train:train_codec"),
    "encode": code("encode", "neuromf.latents.encode:encode_shard"),
    "statistics": code("latent_statistics", "neuromf.latents.statistics:compute_statistics"),
    "train": code("train", "neuromf.training.run:train_run"),
}
PHANTOMS = any(cohort.source == "phantom" for cohort in COHORTS.values())
PREPROCESSING = [
    CONFIG.preprocess.model_dump(mode="json"),
    CONFIG.phantom.model_dump(mode="json") if PHANTOMS else None,
    [CODE[stage] for stage in ("phantom", *STAGES) if PHANTOMS or stage != "phantom"],
]
PREPROCESSED_BY = tables.content_hash([tables.release_sha256(RELEASE), *PREPROCESSING, *released_changes()])
# A codec of one's own is trained once, on the release that first asks for it, and frozen: a later release takes it as it
# is. So its training's hash leaves the release out, and `train_codec` is there only until it is made.
CODEC_TRAINED_BY = tables.content_hash(
    [CONFIG.codec.model_dump(mode="json"), CONFIG.codec_training.model_dump(mode="json"), CODE["train_codec"]]
    + PREPROCESSING
)
CODEC_STAMP = f"{CODEC_FOLDER}/made_from"
CODEC_SETTINGS = CONFIG.codec.model_dump(mode="json") | {
    "identity": (
        CODEC_TRAINED_BY
        if CONFIG.codec.weights == "trained"
        else codec_identity(CONFIG.codec, weights_dir=weights_folder() or None)
    )
}


def codec_is_made():
    made_from = Path(CODEC_STAMP)
    return made_from.is_file() and made_from.read_text() == CODEC_TRAINED_BY and Path(trained_codec()).is_file()


ENCODED_BY = tables.content_hash([PREPROCESSED_BY, CODEC_SETTINGS, CODE["encode"]])


# --- runs and samples ---------------------------------------------------------------------------------------------------


def training_config(wildcards):
    """The run's settings that decide its result."""
    settings = CONFIG.for_run(wildcards.run).model_dump(mode="json")
    settings["train"] = {key: value for key, value in settings["train"].items() if key not in configuration.NO_RESULT}
    return {key: settings[key] for key in ("preprocess", "codec", "flow", "network", "train")}


def trained_by(wildcards):
    """Hash of all that decides a run's weights. The gate is upstream of every training and runs again with its thresholds:
    were this the latents' hash alone, a setting of `train` edited in the same call would wait for the next one."""
    return tables.content_hash([ENCODED_BY, training_config(wildcards), CODE["train"]])


def passed_gate(wildcards):
    """The codec gate's table: before a training, and no reason to train again."""
    return settled([CODEC_GATE], "train", wildcards, trained_by(wildcards))


def training_limits(wildcards):
    """The run's settings that change no weight, as JSON: what may change without training again is a resource."""
    train = CONFIG.for_run(wildcards.run).train.model_dump(mode="json", include=set(configuration.NO_RESULT))
    return json.dumps(train)


def training_devices(wildcards):
    """Processes of the run's training."""
    return CONFIG.for_run(wildcards.run).train.devices


def training_gpus(wildcards):
    return NETWORK_JOB["gpu"] * training_devices(wildcards)


def warm_start(wildcards):
    """The file a run starts from, where it is one of this workflow's or the user's own; the shipped ones are no inputs."""
    train = CONFIG.for_run(wildcards.run).train
    if train.warm_start is None or train.from_shipped:
        return []
    is_file = train.warm_start.endswith((".pt", ".safetensors"))
    return train.warm_start if is_file else f"{train.warm_start}/model.safetensors"


def sample_sets():
    """Every (run, seed, nfe) of the configuration."""
    runs = {run: CONFIG.for_run(run) for run in CONFIG.runs}
    return [(run, seed, nfe) for run in runs for seed in runs[run].train.seeds for nfe in runs[run].sample.nfe]


def trained_models():
    return list(dict.fromkeys((run, seed) for run, seed, _ in sample_sets()))


def keep_trained_models():
    """Refuse a call that trains finished models again unasked; where it was asked for, put the old ones aside."""
    if not workflow.touch:
        for folder in keep_replaced(planned_jobs(workflow), CONFIG.retrain):
            logger.warning(f"a model that is to be trained again is kept in {folder}")


def all_manifests(cohort):
    """What every stage made of the cohort's scans, in the order of the work."""
    return [path for stage in STAGES for path in manifests(cohort, stage)] + latent_shards(cohort, ENCODED)
