"""A wheel holds the tree and works where it is installed; without Node it lacks the viewer and nothing else."""

from __future__ import annotations

import os
import shutil
import site
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
PAGE = "viewer_static/dist/index.html"
FOLDERS = {"unipo_hooks": "unipo_hooks", "adapters": "unipo_hooks/adapters", "examples": "unipo_hooks/examples"}
"""Folder of the tree that a wheel holds whole → its place in the wheel."""


def call(*command: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run a command as a user would, whoever runs the tests."""
    environment = {
        name: value for name, value in os.environ.items() if name not in {"MAKEFLAGS", "MFLAGS", "MAKELEVEL"}
    }
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)


def copy_of_the_tree(to: Path, *, with_viewer: bool) -> Path:
    """What a wheel is built from. A copy: a build leaves files behind, which the next one would pack."""
    unwanted = ["node_modules", "__pycache__", *([] if with_viewer else ["dist"])]
    for folder in (*FOLDERS, "viewer_static"):
        shutil.copytree(ROOT / folder, to / folder, ignore=shutil.ignore_patterns(*unwanted))
    for name in ("pyproject.toml", "README.md", "LICENSE", "Makefile"):
        shutil.copy(ROOT / name, to)
    return to


def build(tree: Path) -> Path:
    """The wheel of a tree, built without network."""
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "wheel", "--quiet")
    done = call(*pip, "--no-deps", "--no-build-isolation", "--wheel-dir", tree / "wheels", ".", cwd=tree)
    assert done.returncode == 0, done.stderr
    return next((tree / "wheels").glob("*.whl"))


def contents(wheel: Path) -> set[str]:
    """Files of a wheel, but for the description of the package."""
    return {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}


def expected() -> set[str]:
    """What a wheel should hold, viewer and all."""
    files = {"unipo_hooks/viewer_static/__init__.py", f"unipo_hooks/{PAGE}"}
    for folder, place in FOLDERS.items():
        for path in (ROOT / folder).rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                files.add(f"{place}/{path.relative_to(ROOT / folder).as_posix()}")
    return files


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not (ROOT / PAGE).is_file():
        pytest.skip("the viewer is not built: make viewer")
    return build(copy_of_the_tree(tmp_path_factory.mktemp("tree"), with_viewer=True))


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The scripts of a fresh environment with the wheel in it; what the wheel depends on is seen from this one."""
    home = tmp_path_factory.mktemp("environment")
    assert call(sys.executable, "-m", "venv", "--without-pip", home, cwd=home).returncode == 0
    python = home / "bin" / "python"
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", python, "install", "--quiet")
    done = call(*pip, "--no-deps", "--no-index", wheel, cwd=home)
    assert done.returncode == 0, done.stderr
    # A path in a .pth file is searched, but its own .pth files are not read: the editable install stays out of sight.
    packages = next((home / "lib").glob("python3*")) / "site-packages"
    (packages / "dependencies.pth").write_text("\n".join(site.getsitepackages()) + "\n")
    return home / "bin"


def test_wheel_holds_the_tree(wheel: Path) -> None:
    assert contents(wheel) == expected()


def test_wheel_installs_one_top_level_package(wheel: Path) -> None:
    names = {name.split("/")[0] for name in zipfile.ZipFile(wheel).namelist()}
    assert {name for name in names if not name.endswith(".dist-info")} == {"unipo_hooks"}


def test_installed_wheel_has_the_adapter_and_takes_no_other_name(installed: Path) -> None:
    code = (
        "import importlib.util, unipo_hooks.adapters.trl as trl\n"
        "from unipo_hooks import UnipoCallback\n"
        "assert UnipoCallback is trl.UnipoCallback\n"
        "print(trl.__file__, *map(importlib.util.find_spec, ('adapters', 'examples', 'viewer_static', 'tests')))"
    )
    done = call(installed / "python", "-c", code, cwd=installed)
    assert done.returncode == 0, done.stderr
    file, *others = done.stdout.split()
    assert Path(file).is_relative_to(installed.parent)
    assert others == ["None"] * 4


def test_installed_wheel_has_the_built_viewer(installed: Path) -> None:
    code = "import sys; from unipo_hooks.export import viewer_page; sys.stdout.buffer.write(viewer_page())"
    done = call(installed / "python", "-c", code, cwd=installed)
    assert done.returncode == 0, done.stderr
    assert done.stdout == (ROOT / PAGE).read_text(encoding="utf-8")


def test_installed_wheel_makes_the_page_of_the_run_it_holds(installed: Path, tmp_path: Path) -> None:
    code = "from pathlib import Path; from unipo_hooks.cli.demo import example_page; print(example_page(Path('demo')))"
    done = call(installed / "python", "-c", code, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, "smollm2.html\n"), done.stderr
    page = (tmp_path / "smollm2.html").read_bytes()
    segments = sorted(path.name for path in (ROOT / "examples" / "smollm2" / "segments").iterdir())
    assert segments and all(f'data-bundle-file="segments/{name}"'.encode() in page for name in segments)


def test_installed_command_answers(installed: Path) -> None:
    done = call(installed / "unipo-hooks", "--help", cwd=installed)
    assert done.returncode == 0, done.stderr
    assert "demo" in done.stdout


def test_wheel_without_the_viewer_lacks_nothing_else(tmp_path: Path) -> None:
    assert contents(build(copy_of_the_tree(tmp_path, with_viewer=False))) == expected() - {f"unipo_hooks/{PAGE}"}


def test_make_wheel_fails_without_the_viewer(tmp_path: Path) -> None:
    tree = copy_of_the_tree(tmp_path, with_viewer=False)
    done = call("make", "wheel", "NODE=no-such-node", cwd=tree)
    assert done.returncode != 0
    assert "Node 20.19+ or 22.12+ is needed to build the viewer; no-such-node was not found" in done.stderr
    assert not (tree / "dist").exists()
