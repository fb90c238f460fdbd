"""Who may know whom, and what an import costs."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

import unipo_hooks

ROOT = Path(__file__).parents[1]

HEAVY = {"torch", "trl", "transformers", "datasets", "accelerate", "verl", "wandb", "trackio", "IPython"}
"""What the core never loads."""

GROUPS: dict[str, set[str]] = {
    "vocabulary": {"algorithm_spec", "channels", "errors", "record", "schema", "schemas"},
    "objective": {"algorithms", "objective"},
    "tools": {"metrics", "policy", "reconcile", "text"},
    "bundle": {"bundle"},
    "capture": {"aside", "recorder", "session", "signals"},
    "export": {"export"},
    "front": {"cli", "server", "shelf"},
    "notebook": {"notebook"},
    "adapters": {"adapters"},
    "examples": {"examples"},
}
"""Every module and package directly inside `unipo_hooks`, by where it stands."""

MAY_KNOW: dict[str, set[str]] = {
    "vocabulary": set(),
    "objective": {"vocabulary"},
    "tools": {"vocabulary", "objective"},
    # A bundle that is shown in a notebook shows itself; what that takes is loaded then.
    "bundle": {"vocabulary", "objective", "tools", "notebook"},
    "capture": {"vocabulary", "objective", "tools", "bundle"},
    "export": {"vocabulary", "objective", "bundle"},
    "front": {"vocabulary", "objective", "bundle", "export", "examples"},
    "notebook": {"vocabulary", "export"},
    "adapters": {"vocabulary", "objective", "tools", "capture"},
    "examples": {"vocabulary", "objective"},
}
"""The arrows: what a group may import besides itself and the public names of `unipo_hooks`."""


def run(code: str) -> str:
    """What a fresh interpreter prints that runs `code` outside the tree."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT.anchor, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def module_name(path: Path) -> str:
    """Name under which a file of the tree is installed."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    if parts[0] != "unipo_hooks":
        parts = ("unipo_hooks", *parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: Path) -> set[str]:
    """Modules a file imports anywhere in it, except for type checkers only.

    `from a import b` counts as `a.b` where a is the project's: b may be a module.
    """
    found: set[str] = set()
    todo: list[ast.AST] = [ast.parse(path.read_text(encoding="utf-8"))]
    while todo:
        node = todo.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            todo += node.orelse
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: a relative import hides where the adapters are installed"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
        todo += ast.iter_child_nodes(node)
    return found


def group(module: str) -> str | None:
    """The group of a module; None for what is not the project's, and for `unipo_hooks` itself and its public names."""
    first, _, rest = module.partition(".")
    part = rest.split(".")[0]
    owners = [name for name, parts in GROUPS.items() if part in parts]
    if first != "unipo_hooks" or not part or (part in unipo_hooks.__all__ and not owners):
        return None
    assert owners, f"say in GROUPS where {part} stands"
    return owners[0]


SOURCES = sorted(path for folder in ("unipo_hooks", "adapters", "examples") for path in (ROOT / folder).rglob("*.py"))


@pytest.mark.parametrize("path", SOURCES, ids=module_name)
def test_arrows_go_one_way(path: Path) -> None:
    own = group(module_name(path))
    if own is None:  # the public names, whose modules are loaded on first use
        assert {module for module in imports(path) if module.startswith("unipo_hooks")} == set()
        return
    allowed = MAY_KNOW[own] | {own}
    assert {module: where for module in imports(path) if (where := group(module)) and where not in allowed} == {}


@pytest.mark.parametrize("path", [path for path in SOURCES if ROOT / "adapters" in path.parents], ids=module_name)
def test_adapters_do_not_know_each_other(path: Path) -> None:
    inside = path.relative_to(ROOT / "adapters").parts
    shared = tuple(f"unipo_hooks.adapters.{each.stem}" for each in (ROOT / "adapters").glob("*.py"))
    own = (f"unipo_hooks.adapters.{inside[0]}.",) if len(inside) > 1 else ()
    known = {module for module in imports(path) if module.startswith("unipo_hooks.adapters.")}
    assert {module for module in known if not module.startswith((*own, *shared))} == set()


def test_public_names_are_sorted_and_there() -> None:
    assert list(unipo_hooks.__all__) == sorted(unipo_hooks.__all__)
    assert set(unipo_hooks.__all__) <= set(dir(unipo_hooks))
    for name in unipo_hooks.__all__:
        assert getattr(unipo_hooks, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'Callback'"):
        unipo_hooks.Callback  # noqa: B018


def test_type_checkers_see_the_names_that_are_loaded_on_first_use() -> None:
    tree = ast.parse(Path(unipo_hooks.__file__).read_text(encoding="utf-8"))
    block = next(node for node in tree.body if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test))
    declared = {
        alias.name: node.module for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names
    }
    assert declared.pop("algorithms") == "unipo_hooks"  # a module of its own, loaded as one
    assert declared == unipo_hooks._HOME
    assert set(unipo_hooks.__all__) == {*declared, "algorithms", "__version__"}


def test_import_loads_next_to_nothing() -> None:
    loaded = set(json.loads(run("import json, sys, unipo_hooks; print(json.dumps(list(sys.modules)))")))
    assert loaded & {*HEAVY, "numpy", "pyarrow", "pydantic", "typer", "rich"} == set()


def test_no_module_of_the_core_loads_a_trainer() -> None:
    core = [module_name(path) for path in SOURCES if ROOT / "unipo_hooks" in path.parents and path.stem != "__main__"]
    load = f"import importlib, json, sys\nfor name in {core}: importlib.import_module(name)\n"
    code = load + "print(json.dumps(list(sys.modules)))"
    assert set(json.loads(run(code))) & HEAVY == set()


def test_import_takes_less_than_0_3_s_on_top_of_pydantic() -> None:
    code = "import pydantic, time; start = time.perf_counter(); import {}; print(time.perf_counter() - start)"
    # The fastest of five: the others measure what else the machine had to do.
    took = {
        name: min(float(run(code.format(name))) for _ in range(5)) for name in ("unipo_hooks", "unipo_hooks.schema")
    }
    print("on top of pydantic:", ", ".join(f"import {name} {seconds:.3f} s" for name, seconds in took.items()))
    assert max(took.values()) < 0.3


def test_callback_without_trl_says_what_to_install() -> None:
    said = run(
        "import sys; sys.modules['trl'] = sys.modules['transformers'] = None\n"
        "import unipo_hooks\n"
        "try: unipo_hooks.UnipoCallback\n"
        "except ImportError as error: print(error)\n"
    )
    assert said.startswith("UnipoCallback needs TRL") and said.strip().endswith("pip install 'unipo-hooks[trl]'")
