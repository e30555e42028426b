"""What code a result comes from: a hash of the definitions that a function reaches inside neuromf.

The hash is taken over abstract syntax trees, from one function through every definition it names, transitively and
across modules. So an edited function changes the hash of exactly the stages that can call it; comments, docstrings,
annotations of arguments, formatting and file times change none. Nor do the declarations of settings and their checks:
what they come to are values, which the jobs carry as params. Nor does the runner of the shards (`BESIDE`). Nothing is
imported: sources are only parsed. Every Python gives the same hash, so that a study goes on with another one.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.resources
import subprocess
from dataclasses import dataclass
from functools import cache
from pathlib import Path

PACKAGE = "neuromf"
BESIDE = ("neuromf.shards",)  # who does what, and what is done already: no result comes of it
DECLARED_BY = ("setting", "section")  # the functions of neuromf.config that declare a setting
CHECKED_BY = ("field_validator", "model_validator")  # the decorators of a setting's checks
Definition = tuple[str, str]  # module, name


@dataclass(frozen=True)
class Module:
    """The top level of one source file: its definitions by name, and where its imported names come from."""

    definitions: dict[str, list[ast.stmt]]
    imports: dict[str, Definition]  # local name -> (module, name in it; "" for the module itself)


def code_hash(function: str, script: Path | None = None) -> str:
    """Return the hash of the code behind ``module:name``, e.g. ``neuromf.preprocess.conform:conform_shard``.

    Args:
        script: the workflow script that calls it, whose own statements then count too, but not what else they reach: how
            settings are read, logs written and progress pictured changes no result.

    Raises:
        ValueError: no such definition.
    """
    module, _, name = function.partition(":")
    if name not in _module(module).definitions:
        raise ValueError(f"{function}: {module} defines no {name!r} at its top level")
    reached: set[Definition] = set()
    _reach((module, name), reached)
    parts = [f"{m}:{n}:{text}" for m, n in sorted(reached) for text in _texts((m, n))]
    if script is not None:
        parts.append(_dump(_Bare().visit(ast.parse(script.read_text(encoding="utf-8")))))
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def git_commit(folder: Path) -> str | None:
    """Return the commit checked out in ``folder`` (``-dirty`` when files differ), or None outside a repository."""
    # git reads no checkout of another user, as in a group's folder; this one's code runs here already, so it may be read
    command = [
        "git",
        "-c",
        "safe.directory=*",
        "-C",
        str(folder),
        "describe",
        "--always",
        "--dirty",
        "--abbrev=12",
        "--exclude=*",
    ]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=20)
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None


def _reach(definition: Definition, reached: set[Definition]) -> None:
    """Add a definition and all it names to ``reached``."""
    if definition in reached:
        return
    reached.add(definition)
    for target in _targets(definition):
        _reach(target, reached)


@cache
def _targets(definition: Definition) -> frozenset[Definition]:
    """Return the definitions inside neuromf that a definition names."""
    module, name = definition
    named = {found for statement in _module(module).definitions[name] for found in _names(statement)}
    targets = (target for found in named if (target := _resolve(module, *found)))
    return frozenset(target for target in targets if not _is_beside(target[0]))


def _is_beside(module: str) -> bool:
    return any(module == name or module.startswith(f"{name}.") for name in BESIDE)


@cache
def _texts(definition: Definition) -> tuple[str, ...]:
    """Return a definition's statements as text."""
    return tuple(_dump(statement) for statement in _module(definition[0]).definitions[definition[1]])


def _resolve(module: str, name: str, attributes: tuple[str, ...]) -> Definition | None:
    """Return the definition inside neuromf that ``name.attribute…`` means in ``module``, if there is one."""
    here = _module(module)
    if name in here.definitions:
        return module, name
    if name not in here.imports:
        return None
    source, imported = here.imports[name]
    while not imported:  # the name is a module: follow the attributes into it
        if not attributes:
            return None
        imported, attributes = attributes[0], attributes[1:]
        if _source(f"{source}.{imported}") is not None:
            source, imported = f"{source}.{imported}", ""
    if imported in _module(source).definitions:
        return source, imported
    return _resolve(source, imported, attributes)  # re-exported by a package's __init__


@cache
def _module(name: str) -> Module:
    source = _source(name)
    if source is None:
        raise ValueError(f"{name} is no module of {PACKAGE}")
    definitions: dict[str, list[ast.stmt]] = {}
    imports: dict[str, Definition] = {}
    for statement in ast.parse(source).body:
        if isinstance(statement, ast.FunctionDef | ast.ClassDef):
            definitions.setdefault(statement.name, []).append(_Bare().visit(statement))
        elif isinstance(statement, ast.Assign | ast.AnnAssign | ast.AugAssign):
            targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
            for target in targets:
                for node in ast.walk(target):
                    if isinstance(node, ast.Name):
                        definitions.setdefault(node.id, []).append(statement)
        elif isinstance(statement, ast.ImportFrom | ast.Import):
            imports |= _imports(statement)
    return Module(definitions, imports)


def _imports(statement: ast.ImportFrom | ast.Import) -> dict[str, Definition]:
    """Return what an import statement binds of neuromf. The house style has absolute imports only."""
    bound: dict[str, Definition] = {}
    for alias in statement.names:
        if isinstance(statement, ast.ImportFrom):
            source = statement.module or ""
            if source.split(".")[0] == PACKAGE:
                is_module = _source(f"{source}.{alias.name}") is not None
                target = (f"{source}.{alias.name}", "") if is_module else (source, alias.name)
                bound[alias.asname or alias.name] = target
        elif alias.name.split(".")[0] == PACKAGE:
            bound[alias.asname or PACKAGE] = (alias.name if alias.asname else PACKAGE, "")
    return bound


@cache
def _source(module: str) -> str | None:
    """Return the source of a module of neuromf, or None when there is none of that name."""
    parts = module.split(".")
    folder = importlib.resources.files(PACKAGE)
    for path in (folder.joinpath(*parts[1:], "__init__.py"), folder.joinpath(*parts[1:-1], f"{parts[-1]}.py")):
        if (len(parts) > 1 or path.name == "__init__.py") and path.is_file():
            return path.read_text(encoding="utf-8")
    return None


def _names(statement: ast.stmt) -> list[tuple[str, tuple[str, ...]]]:
    """Return every name a statement mentions, each with the attributes taken of it."""
    found: list[tuple[str, tuple[str, ...]]] = []
    for node in ast.walk(statement):
        attributes: list[str] = []
        inner: ast.AST = node
        while isinstance(inner, ast.Attribute):
            attributes.insert(0, inner.attr)
            inner = inner.value
        if isinstance(inner, ast.Name):
            found.append((inner.id, tuple(attributes)))
    return found


def _dump(tree: object) -> str:
    """Return a syntax tree as text, as Python 3.11's ``ast.dump`` does, whose trees later Pythons add to."""
    if isinstance(tree, list):
        return f"[{', '.join(map(_dump, tree))}]"
    if not isinstance(tree, ast.AST):
        return repr(tree)
    texts, named = [], False
    for field in tree._fields:
        value = getattr(tree, field, None)
        if field == "kind" or (field == "type_params" and not value):  # the u of u"", and new in 3.12
            continue
        if value is None and getattr(type(tree), field, ...) is None:
            named = True  # what follows a field that is left out has its name
            continue
        if isinstance(tree, ast.JoinedStr) and isinstance(
            value, list
        ):  # 3.12 ends f"{x:{width}}" with an empty constant
            value = [part for part in value if not (isinstance(part, ast.Constant) and part.value == "")]
        texts.append(f"{field}={_dump(value)}" if named else _dump(value))
    return f"{type(tree).__name__}({', '.join(texts)})"


class _Bare(ast.NodeTransformer):
    """Drop what changes no result: docstrings, the annotations of functions, and the settings that a class declares."""

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        self.generic_visit(node)
        node.body = _without_docstring(node.body)
        node.returns = None
        arguments = node.args
        every = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs, arguments.vararg, arguments.kwarg]
        for argument in every:
            if argument is not None:
                argument.annotation = None
        return node

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.AST:
        self.generic_visit(node)
        node.body = [s for s in _without_docstring(node.body) if not _is_about_settings(s)] or [ast.Pass()]
        return node


def _is_about_settings(statement: ast.stmt) -> bool:
    """Return whether a statement of a class declares a setting or is a check of settings."""
    if isinstance(statement, ast.AnnAssign):
        return _called(statement.value) in DECLARED_BY
    decorators = statement.decorator_list if isinstance(statement, ast.FunctionDef) else []
    return any(_called(decorator) in CHECKED_BY for decorator in decorators)


def _called(expression: ast.expr | None) -> str | None:
    """Return the name of the function that an expression calls."""
    called = expression.func if isinstance(expression, ast.Call) else None
    return called.id if isinstance(called, ast.Name) else None


def _without_docstring(body: list[ast.stmt]) -> list[ast.stmt]:
    first = body[0]
    if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str):
        return body[1:] or [ast.Pass()]
    return body
