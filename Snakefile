# NeuroMF: from raw NIfTI scans to a trained one-step generator, its evaluation and a report.
#
#   results/cohorts/<cohort>/                     grows with the cohort
#     raw/                                        heads of a phantom cohort (the demo), with their ground truth
#     preprocessed/sub-<id>/[ses-<s>/]anat/       …_desc-brain_…, …_desc-n4_…, …_desc-preproc_….nii.gz and masks
#     preprocessed/manifests/<stage>/shard-*.tsv  what each stage made of each scan
#     preprocessed/failed.tsv                     the scans that failed, with the reason
#     preprocessed/duplicates.tsv                 scans that are there under several names
#     latents/<codec>/shard-*.safetensors         posterior means
#   results/codecs/<codec>/                       a VAE of one's own (codec.weights: trained)
#   results/releases/<release>/                   fixed by the release
#     latent_statistics.json                      of the train split
#     runs/<run>/seed-<s>/                        model.safetensors, model.json, metrics.csv, val.csv, tensorboard/
#     runs/<run>/replaced/seed-<s>-<hash>/        models that were trained again since
#     samples/<run>/seed-<s>/nfe-<k>/             generated latents and NIfTI volumes
#     evaluation/                                 codec.json, codec_gate.tsv, codec_worst/, latents.json: before training;
#                                                 metrics.parquet, metrics.json, scans.parquet, spectra.parquet,
#                                                 differences.parquet, seed_tests.parquet: after it
#     paper/                                      codec_worst.png, latents.png, spectrum.png, regions.png, copies.png; tables for a
#                                                 paper, csv and tex: differences, seeds, seed_tests
#     report/index.html                           the page to look at
#   results/experiments/torus/                   the method on data that is understood: snakemake torus
#   logs/, benchmarks/ under results/             one file per job
#
# Settings: config/config.yaml (reference: config/README.md). Who is in a release: config/releases/<release>.tsv.

from snakemake.utils import min_version

min_version("9.0")

from pathlib import Path

from neuromf import config as configuration
from neuromf.messages import plain_errors

with plain_errors():
    if not workflow.overwrite_configfiles or Path("config/config.yaml").is_file():
        configuration.read_yaml(Path("config/config.yaml"))  # what Snakemake says of a damaged one names no line

    configfile: "config/config.yaml"

    include: "rules/common.smk"
    include: "rules/cohort.smk"
    include: "rules/preprocess.smk"
    include: "rules/latents.smk"
    include: "rules/train.smk"
    include: "rules/sample.smk"
    include: "rules/evaluate.smk"
    include: "rules/paper.smk"
    include: "rules/experiments.smk"


report: "src/neuromf/paper/report/captions/workflow.rst"


onstart:
    check_job_arrays()
    keep_trained_models()
    record_use_of_cohorts()
    keep_gate_tables()


rule all:
    default_target: True
    input:
        [path for cohort in COHORTS for path in all_manifests(cohort)],  # or a lost file that nothing takes stays lost
        f"{RELEASE_FOLDER}/report/index.html",
        f"{RELEASE_FOLDER}/paper/latents.png",
        f"{RELEASE_FOLDER}/paper/spectrum.png",
        [f"{RELEASE_FOLDER}/paper/regions.png"] if CONFIG.evaluate.segmenters else [],
        f"{RELEASE_FOLDER}/paper/differences.csv",


rule preprocess:
    input:
        [failed_table(cohort) for cohort in COHORTS],


rule encode_all:
    input:
        [shard for cohort in COHORTS for shard in latent_shards(cohort, LATENTS)],
