"""The code hash follows what a function can reach, and nothing else."""

import ast
import os
import re
import subprocess
from pathlib import Path

import pytest
from builders import REPOSITORY, interpreter

from neuromf import environment, provenance

LIBRARY = '''"""Doc."""
from neuromf.base import helper as h
import neuromf.base as base
LIMIT = 3
def entry(x: int) -> int:
    """Say what."""
    return h(x) + LIMIT + base.other(x) + Settings(2).double()
def unrelated():
    return 1
class Settings(Section):
    """Doc."""
    size: int = setting(3, "Side")
    part: Part = section(Part, "Part")
    kind = "fixed"
    @model_validator(mode="after")
    def _check(self):
        raise ValueError("too small")
    def double(self):
        return 2 * self.size
class Part(Section):
    share: float = setting(0.5, "Share")
'''
BASE = """
def helper(x):
    return inner(x)
def inner(x):
    return x + 1
def other(x):
    return x
def unused():
    return 2
"""


@pytest.fixture
def sources(monkeypatch):
    """A package `neuromf` of two modules whose sources a test may change."""
    texts = {"neuromf": "", "neuromf.library": LIBRARY, "neuromf.base": BASE}

    def forget() -> None:
        for known in (provenance._module, provenance._targets, provenance._texts):
            known.cache_clear()

    def code_hash() -> str:
        forget()
        return provenance.code_hash("neuromf.library:entry")

    monkeypatch.setattr(provenance, "_source", texts.get)
    yield texts, code_hash
    forget()


@pytest.mark.parametrize(
    ("module", "old", "new"),
    [
        ("neuromf.library", "Say what.", "Say it differently."),
        ("neuromf.library", "x: int", "x: float"),
        ("neuromf.library", "LIMIT = 3", "LIMIT = 3  # three"),
        ("neuromf.library", "return 1", "return 100"),
        ("neuromf.library", 'setting(3, "Side")', 'setting(4, "Side of it")'),
        ("neuromf.library", "    kind =", "    other: int = setting(1, 'Added')\n    kind ="),
        ("neuromf.library", "too small", "too small; use 3"),
        ("neuromf.library", 'setting(0.5, "Share")', 'setting(0.6, "Share")'),
        ("neuromf.base", "return 2", "return 3"),
        ("neuromf.base", "\ndef helper", "\n\n\ndef helper"),
    ],
)
def test_edits_that_change_no_result_keep_the_hash(sources, module, old, new):
    texts, code_hash = sources
    before = code_hash()
    assert old in texts[module]
    texts[module] = texts[module].replace(old, new)
    assert code_hash() == before


def test_a_scripts_statements_count_and_its_comments_do_not(sources, tmp_path):
    def hash_of(text: str) -> str:
        script = tmp_path / "script.py"
        script.write_text(text)
        return provenance.code_hash("neuromf.library:entry", script)

    _, code_hash = sources
    before = hash_of("from neuromf.library import entry\nentry(1)\n")
    assert before == hash_of("from neuromf.library import entry\n\nentry(1)  # once\n") != code_hash()
    assert before != hash_of("from neuromf.library import entry\nentry(2)\n")


@pytest.mark.parametrize(
    ("module", "old", "new"),
    [
        ("neuromf.library", "LIMIT = 3", "LIMIT = 4"),
        ("neuromf.library", "+ LIMIT", "- LIMIT"),
        ("neuromf.library", "return 2 * self.size", "return 3 * self.size"),
        ("neuromf.library", '"fixed"', '"free"'),
        ("neuromf.base", "x + 1", "x + 2"),
        ("neuromf.base", "def other(x):\n    return x", "def other(x):\n    return -x"),
    ],
)
def test_edits_of_what_is_reached_change_the_hash(sources, module, old, new):
    texts, code_hash = sources
    before = code_hash()
    assert old in texts[module]
    texts[module] = texts[module].replace(old, new)
    assert code_hash() != before


def test_the_runner_of_the_shards_is_no_code_of_a_stage():
    """An edit of how work is shared out or remembered makes no scan anew."""
    reached = set()
    provenance._reach(("neuromf.preprocess.skull_strip", "skull_strip_shard"), reached)
    assert ("neuromf.preprocess.template", "template_mask") in reached
    assert not {module for module, _ in reached if module.startswith("neuromf.shards")}


def test_the_other_ranks_of_a_training_count():
    reached = set()
    provenance._reach(("neuromf.training.run", "train_run"), reached)
    assert ("neuromf.training.rank", "follow") in reached  # it runs in processes of its own


def test_a_missing_function_is_an_error():
    with pytest.raises(ValueError, match="defines no 'nothing'"):
        provenance.code_hash("neuromf.tables:nothing")


def test_git_commit(tmp_path):
    assert provenance.git_commit(tmp_path) is None
    commit = provenance.git_commit(Path(__file__).parent)
    assert commit is None or len(commit.removesuffix("-dirty")) >= 7


WIDTH = "FormattedValue(Name('w', Load()), -1)"
TREES = {  # as Python 3.11's ast.dump writes them
    "def f(a, *, b=None): pass": "FunctionDef('f', arguments([], [arg('a')], kwonlyargs=[arg('b')], "
    "kw_defaults=[Constant(None)], defaults=[]), [Pass()], [])",
    "class C: pass": "ClassDef('C', [], [], [Pass()], [])",
    'f"{x:>{w}}"': f"FormattedValue(Name('x', Load()), -1, JoinedStr([Constant('>'), {WIDTH}]))",
    'f"{x:{w}}"': f"FormattedValue(Name('x', Load()), -1, JoinedStr([{WIDTH}]))",
    '["", None, u"a"]': "List([Constant(''), Constant(None), Constant('a')], Load())",
}


@pytest.mark.parametrize("source", TREES)
def test_trees_are_written_as_python_3_11_does(source):
    assert TREES[source] in provenance._dump(ast.parse(source))


SHARED = """
import sys
from pathlib import Path
from neuromf.provenance import code_hash
for line in sys.stdin:
    script, _, function = line.strip().rpartition(" ")
    print(code_hash(function, Path(script)))
"""


@pytest.mark.parametrize("version", environment.PYTHONS)
def test_every_python_gives_the_same_hashes(version):
    python = interpreter(version)
    if python is None:
        pytest.skip(f"no Python {version} here")
    rules = "".join(path.read_text() for path in (REPOSITORY / "rules").glob("*.smk"))
    stages = re.findall(r'code\("(\w+)", "([\w.:]+)"\)', rules)
    assert len(stages) > 20
    lines = "".join(f"{REPOSITORY}/workflow_scripts/{script}.py {function}\n" for script, function in stages)
    sources = os.environ | {"PYTHONPATH": str(REPOSITORY / "src")}
    done = subprocess.run([python, "-c", SHARED], input=lines, env=sources, capture_output=True, text=True, check=True)
    here = [provenance.code_hash(function, REPOSITORY / f"workflow_scripts/{script}.py") for script, function in stages]
    assert done.stdout.split() == here
