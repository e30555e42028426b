# Training: one job per run and seed. Checkpoints lie in a folder that is no declared output, so that a killed job resumes.


rule train:
    input:
        warm_start=warm_start,
        gate=passed_gate,
        statistics=f"{RELEASE_FOLDER}/latent_statistics.json",
        latents=released(LATENTS, "train", trained_by),
        manifests=released(ENCODED, "train", trained_by),
        codec=trained_codec,
    output:
        weights=f"{RELEASE_FOLDER}/runs/{{run}}/seed-{{seed}}/model.safetensors",
        about=f"{RELEASE_FOLDER}/runs/{{run}}/seed-{{seed}}/model.json",
        metrics=report(
            f"{RELEASE_FOLDER}/runs/{{run}}/seed-{{seed}}/metrics.csv",
            caption="../src/neuromf/paper/report/captions/training.rst",
            category="Training",
            labels={"run": "{run}", "seed": "{seed}"},
        ),
        validation=f"{RELEASE_FOLDER}/runs/{{run}}/seed-{{seed}}/val.csv",
    log:
        f"results/logs/train/{CONFIG.release}-{{run}}-{{seed}}.log",
    benchmark:
        f"results/benchmarks/train/{CONFIG.release}-{{run}}-{{seed}}.tsv"
    retries: retries(10)  # a long training leaves that many time limits of a queue; one that does not come further ends
    conda:
        "../envs/neuromf.yaml"
    threads: lambda wildcards: network_threads() * training_devices(wildcards)
    resources:
        attempt=lambda wildcards, attempt: attempt,
        limits=training_limits,
        stamp=lambda wildcards: stamp("train", wildcards),
        mem_mb=training_memory,
        runtime="2d",
        gpu=training_gpus,
        gpus_taken=training_gpus,  # Snakemake cuts `gpu` to what --resources allows
        device=CONFIG.device,
        weights_dir=weights_folder(),
        checkpoints=checkpoints,
    params:
        release=RELEASE_TABLE,
        config=training_config,
        codec=CODEC_SETTINGS,
        upstream=trained_by,
        code=CODE["train"],
    script:
        "../workflow_scripts/train.py"
