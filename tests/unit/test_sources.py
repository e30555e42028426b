"""What the sources may not do: load a pickle of a user's file, or run what a file says."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
SOURCES = sorted(
    path.relative_to(REPOSITORY).as_posix()
    for folder in ("src", "workflow_scripts", "benchmarks")
    for path in (REPOSITORY / folder).rglob("*.py")
)
PICKLES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
FORBIDDEN = {"read_pickle", "to_pickle", "unsafe_load", "full_load", "load_all", "system", "popen"}
WEIGHTS_ONLY = "src/neuromf/published.py"  # the one place that reads a .pt


def faults(source: str, where: str) -> list[str]:
    """Return what a source does that it may not, with the line."""
    found = []
    for node in ast.walk(ast.parse(source)):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        found += [f"{where}:{node.lineno} imports {name}" for name in names if name.split(".")[0] in PICKLES]  # type: ignore[attr-defined]
        if isinstance(node, ast.Call):
            found += [f"{where}:{node.lineno} {fault}" for fault in _call(node, where)]
    return found


def _call(node: ast.Call, where: str) -> list[str]:
    called = ast.unparse(node.func)
    given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
    last = called.split(".")[-1]
    faults = []
    if called == "torch.load" and (where != WEIGHTS_ONLY or given.get("weights_only") != "True"):
        faults.append("calls torch.load; neuromf.published reads a .pt with weights_only and an allow-list")
    if "allow_pickle" in given and given["allow_pickle"] != "False":
        faults.append("allows a pickle")
    plain = called == "yaml.load" and ast.unparse(node.args[-1]) == "yaml.BaseLoader"  # which makes nothing but texts
    if (
        called in ("yaml.load", "eval", "exec") and not plain
    ) or last in FORBIDDEN:  # a network's own eval() is no danger
        faults.append(f"calls {called}")
    if given.get("shell", "False") != "False":
        faults.append("starts a shell")
    return faults


@pytest.mark.parametrize("path", SOURCES)
def test_no_pickle_is_loaded_and_nothing_that_a_file_says_is_run(path: str) -> None:
    assert faults((REPOSITORY / path).read_text(encoding="utf-8"), path) == []


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from joblib import load",
        "torch.load(path)",
        "torch.load(path, weights_only=True)",
        "np.load(path, allow_pickle=True)",
        "np.load(path, allow_pickle=flag)",
        "yaml.load(text, Loader=Loader)",
        "pd.read_pickle(path)",
        "eval(text)",
        "subprocess.run(text, shell=True)",
        "os.system(text)",
    ],
)
def test_the_scan_sees_what_it_looks_for(source: str) -> None:
    assert len(faults(source, "src/neuromf/other.py")) == 1


def test_the_one_torch_load_has_weights_only() -> None:
    assert faults("torch.load(path, weights_only=True)", WEIGHTS_ONLY) == []
    assert len(faults("torch.load(path)", WEIGHTS_ONLY)) == 1
