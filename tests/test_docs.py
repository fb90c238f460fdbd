"""What the documents say is there, is there."""

import ast
import re
from pathlib import Path

import pytest
from typer.main import get_command

import unipo_hooks
from unipo_hooks.bundle.reader import Bundle
from unipo_hooks.cli import app
from unipo_hooks.cli.words import WORDS
from unipo_hooks.policy import CapturePolicy

ROOT = Path(__file__).parents[1]
DOCUMENTS = ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md", "examples/verl_grpo.md"]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_python_in_the_readme_compiles_and_uses_public_names():
    assert blocks("python")
    for block in blocks("python"):
        tree = ast.parse(block)
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.module == "unipo_hooks":
                assert {alias.name for alias in node.names} <= set(unipo_hooks.__all__)


def test_methods_the_readme_calls_on_a_bundle_exist():
    called = set(re.findall(r"bundle\.(\w+)\(", README))
    assert called >= {"metrics", "updates", "groups", "responses", "tokens"}
    assert all(callable(getattr(Bundle, name)) for name in called)


def test_commands_in_the_readme_are_those_of_the_command_line():
    commands = get_command(app).commands
    said = set(re.findall(r"unipo-hooks (demo|view|info|validate|export|\w+) ?(?:PATH|runs|`)", README))
    assert said == set(commands)
    for name, option in re.findall(r"unipo-hooks (\w+) PATH (--[\w-]+)", README):
        assert option in {opt for parameter in commands[name].params for opt in parameter.opts}


def test_words_in_the_readme_are_those_of_the_command_line():
    section = README.partition("### The words\n")[2].partition("\n### ")[0]
    said = re.findall(r"^- \*\*(.+?)\*\*: (.+?)(?=\n- |\n\n)", section, re.MULTILINE | re.DOTALL)
    assert [(word, " ".join(meaning.split())) for word, meaning in said] == list(WORDS.items())


def test_settings_in_the_readme_are_those_of_the_policy():
    rows = re.findall(r"^\| `(\w+)` \|", README, re.MULTILINE)
    assert set(CapturePolicy.model_fields) <= set(rows)


@pytest.mark.parametrize("document", ["README.md", "examples/verl_grpo.md"])
def test_settings_of_verl_in_the_documents_are_those_it_takes(document):
    text = (ROOT / document).read_text(encoding="utf-8")
    said = set(re.findall(r"\+unipo\.(\w+)=", text))
    assert "path" in said
    assert said <= {"path", "strict", "on_full", *CapturePolicy.model_fields}


@pytest.mark.parametrize("document", DOCUMENTS)
def test_files_a_document_names_exist(document):
    text = (ROOT / document).read_text(encoding="utf-8")
    for link in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (ROOT / link).exists(), link
    for path in re.findall(r"`((?:unipo_hooks|adapters|tests|examples|viewer_static)/[\w./-]+)`", text):
        assert (ROOT / path).exists(), path


def test_make_targets_in_the_documents_exist():
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    for document in DOCUMENTS:
        text = (ROOT / document).read_text(encoding="utf-8")
        assert set(re.findall(r"`make ([\w-]+)`", text)) <= targets, document
