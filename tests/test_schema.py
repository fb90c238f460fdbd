"""The committed JSON Schemas are the ones the models give."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from unipo_hooks.schema import JSON_SCHEMAS
from unipo_hooks.schemas import __main__ as generator
from unipo_hooks.schemas.__main__ import FOLDER, render


def test_every_model_has_its_file_and_every_file_its_model() -> None:
    assert {path.stem for path in FOLDER.glob("*.json")} == set(JSON_SCHEMAS)


@pytest.mark.parametrize("stem", JSON_SCHEMAS)
def test_committed_schema_is_the_generated_one(stem: str) -> None:
    committed = (FOLDER / f"{stem}.json").read_text(encoding="utf-8")
    assert committed == render(JSON_SCHEMAS[stem]), "out of date: make schemas"


@pytest.mark.parametrize("stem", JSON_SCHEMAS)
def test_schema_says_what_it_describes(stem: str) -> None:
    schema = json.loads(render(JSON_SCHEMAS[stem]))
    described = {"": schema, **schema.get("$defs", {})}
    assert [name for name, part in described.items() if not part.get("description")] == []


def test_generator_writes_every_schema_and_removes_those_of_models_that_are_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "gone.json").write_text("{}")
    monkeypatch.setattr(generator, "FOLDER", tmp_path)
    generator.main()
    written = {path.stem: path.read_text(encoding="utf-8") for path in tmp_path.iterdir()}
    assert written == {stem: render(model) for stem, model in JSON_SCHEMAS.items()}
