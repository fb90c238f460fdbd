"""Runs functions of released code without installing it: single definitions, read from a git object or a wheel.

A definition is taken with whatever it uses of its own file; everything else it names is passed in. Nothing of the code
is kept.
"""

from __future__ import annotations

import ast
import math
import subprocess
import zipfile
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch


@dataclass(frozen=True)
class Repository:
    """A repository at a commit, or a released wheel."""

    name: str
    """`owner/name`, or the name of a distribution."""
    version: str
    """The commit, or the distribution's version."""
    clones: Path
    """Folder of clones, each called `name`, `owner+name` or `owner-name`, and of wheels."""

    def against(self, function: str) -> str:
        """What a case says it was compared with."""
        if "/" in self.name:
            return f"{self.name}@{self.version[:8]} {function}"
        return f"{self.name} {self.version} {function}"

    def text(self, path: str) -> str:
        """A file's source."""
        if "/" not in self.name:
            wheel = next(self.clones.glob(f"**/{self.name.replace('-', '_')}-{self.version}-*.whl"))
            return zipfile.ZipFile(wheel).read(path).decode()
        git = ["git", f"--git-dir={self._git_folder()}", "show", f"{self.version}:{path}"]
        return subprocess.run(git, capture_output=True, text=True, check=True).stdout

    def _git_folder(self) -> Path:
        owner, name = self.name.split("/")
        for folder in (name, f"{owner}+{name}", f"{owner}-{name}"):
            for inside in (".git", "repo", "repo/.git", "."):
                if (self.clones / folder / inside / "objects").is_dir():
                    return self.clones / folder / inside
        raise FileNotFoundError(f"no clone of {self.name} in {self.clones}")


class Recorder:
    """A function that keeps the arguments of its calls."""

    def __init__(self, function: Any) -> None:
        self.function = function
        self.calls: list[tuple[Any, ...]] = []

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        self.calls.append(arguments)
        return self.function(*arguments, **named)


class Settings(dict[str, Any]):
    """Settings read as attributes or with `get`; what was not given is None."""

    def __getattr__(self, name: str) -> Any:
        return self.get(name)


def load(repository: Repository, path: str, *names: str, **beside: Any) -> SimpleNamespace:
    """The named functions and classes of a file, callable; `beside` are names the file imports."""
    tree = ast.parse(repository.text(path))
    defined = dict(_definitions(tree.body))
    every = {node.name: node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    wanted, taken = list(names), {}
    while wanted:
        name = wanted.pop()
        node = defined.get(name) or (every.get(name) if name in names else None)
        if name in taken or name in beside or node is None:
            continue
        taken[name] = _bare(node)
        wanted += [each.id for each in ast.walk(node) if isinstance(each, ast.Name)]
    namespace = _namespace() | beside
    _run(sorted(taken.values(), key=lambda node: node.lineno), namespace)
    return SimpleNamespace(**{name: namespace[name] for name in names})


def branch(repository: Repository, path: str, function: str, test: str, variables: dict[str, Any]) -> dict[str, Any]:
    """Runs the body of the `if` whose condition reads `test` inside a function; returns its variables."""
    body = next(
        node.body
        for within in _within(repository, path, function)
        for node in ast.walk(within)
        if isinstance(node, ast.If) and ast.unparse(node.test) == test
    )
    namespace = _namespace() | variables
    _run(body, namespace)
    return namespace


def statements(
    repository: Repository, path: str, function: str, first: str, last: str, variables: dict[str, Any]
) -> dict[str, Any]:
    """Runs the statements of a block inside a function, from one that starts with `first` to one with `last`."""
    for within in _within(repository, path, function):
        for block in _blocks(within):
            texts = [ast.unparse(node) for node in block]
            start = next((at for at, text in enumerate(texts) if text.startswith(first)), None)
            if start is None:
                continue
            end = next((at for at in range(start, len(texts)) if texts[at].startswith(last)), None)
            if end is not None:
                namespace = _namespace() | variables
                _run(block[start : end + 1], namespace)
                return namespace
    raise LookupError(f"{path}: no block from {first!r} to {last!r} in {function}")


def _within(repository: Repository, path: str, function: str) -> Iterator[ast.AST]:
    """Functions of the name; the whole file where the name is `<module>`."""
    for node in ast.walk(ast.parse(repository.text(path))):
        name = "<module>" if isinstance(node, ast.Module) else getattr(node, "name", None)
        if name == function and isinstance(node, ast.Module | ast.FunctionDef):
            yield node


def _blocks(node: ast.AST) -> Iterator[list[ast.stmt]]:
    for each in ast.walk(node):
        for name in ("body", "orelse"):
            block = getattr(each, name, None)
            if isinstance(block, list):
                yield block


def _definitions(body: list[ast.stmt]) -> Iterator[tuple[str, ast.stmt]]:
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name, node
        elif isinstance(node, ast.Assign):
            yield from ((target.id, node) for target in node.targets if isinstance(target, ast.Name))


def _bare(node: ast.stmt) -> ast.stmt:
    """Without types, whose names are of other files, and without decorators that register it somewhere."""
    for each in ast.walk(node):
        if isinstance(each, ast.FunctionDef | ast.ClassDef):
            kept = ("staticmethod", "classmethod", "dataclass")
            each.decorator_list = [one for one in each.decorator_list if ast.unparse(one) in kept]
        if isinstance(each, ast.FunctionDef):
            each.returns = None
        if isinstance(each, ast.arg):
            each.annotation = None
        if isinstance(each, ast.AnnAssign):
            each.annotation = ast.Constant("Any")
    return node


def _namespace() -> dict[str, Any]:
    return {
        "torch": torch,
        "np": np,
        "math": math,
        "nn": torch.nn,
        "defaultdict": defaultdict,
        "dataclass": dataclass,
        "Enum": Enum,
        "print": lambda *_: None,
    }


def _run(body: list[ast.stmt], namespace: dict[str, Any]) -> None:
    # annotations name types of packages that are not there: they must not be evaluated
    future = ast.parse("from __future__ import annotations").body
    module = ast.fix_missing_locations(ast.Module([*future, *body], []))
    # the code of a repository the caller chose, at a commit that is pinned
    exec(compile(module, "<released>", "exec"), namespace)  # noqa: S102
