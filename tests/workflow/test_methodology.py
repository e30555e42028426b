"""The published setting without its weights stops at once and says what to fetch."""

from builders import Project


def test_methodology_asks_for_the_published_weights(tmp_path, bids):
    project = Project(tmp_path)
    assert project.neuromf("index", str(bids), "--cohort", "study", "--skull-stripped").returncode == 0
    assert project.neuromf("release", "create", "first", "--cohort", "study").returncode == 0
    project.configure(preset="methodology", release="first")
    done = project.snakemake("--dry-run", check=False)
    assert done.returncode != 0
    assert "autoencoder_v1.pt" in done.stderr
    assert "weights_dir" in done.stderr
