# Sampling (noise → latents) and decoding (latents → NIfTI), for every run, seed and number of network evaluations.

SAMPLES = f"{RELEASE_FOLDER}/samples/{{run}}/seed-{{seed}}/nfe-{{nfe}}"


rule sample:
    input:
        weights=rules.train.output.weights,
        about=rules.train.output.about,
    output:
        f"{SAMPLES}/latents.safetensors",
    log:
        f"results/logs/sample/{CONFIG.release}-{{run}}-{{seed}}-{{nfe}}.log",
    benchmark:
        f"results/benchmarks/sample/{CONFIG.release}-{{run}}-{{seed}}-{{nfe}}.tsv"
    conda:
        "../envs/neuromf.yaml"
    threads: 1
    resources:
        **NETWORK_JOB,
        device=CONFIG.device,
        batch_size=CONFIG.sample.batch_size,
    params:
        n=CONFIG.sample.n,
        seed=CONFIG.sample.seed,
        code=code("sample", "neuromf.generation.generate:sample_latents"),
    script:
        "../workflow_scripts/sample.py"


rule decode:
    input:
        latents=f"{SAMPLES}/latents.safetensors",
        training=released(LATENTS, "decode", ENCODED_BY),
        manifests=released(ENCODED, "decode", ENCODED_BY),
        codec=trained_codec,
    output:
        participants=f"{SAMPLES}/participants.tsv",
        timing=f"{SAMPLES}/sample_timing.json",
    log:
        f"results/logs/decode/{CONFIG.release}-{{run}}-{{seed}}-{{nfe}}.log",
    benchmark:
        f"results/benchmarks/decode/{CONFIG.release}-{{run}}-{{seed}}-{{nfe}}.tsv"
    conda:
        "../envs/neuromf.yaml"
    threads: 1
    resources:
        **NETWORK_JOB,
        stamp=lambda wildcards: stamp("decode", wildcards),
        device=CONFIG.device,
        weights_dir=weights_folder(),
    params:
        upstream=ENCODED_BY,
        release=RELEASE_TABLE,
        codec=CODEC_SETTINGS,
        code=code("decode", "neuromf.generation.generate:decode_latents"),
    script:
        "../workflow_scripts/decode.py"
