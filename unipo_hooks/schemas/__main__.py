"""Writes the JSON Schemas beside this file: `python -m unipo_hooks.schemas`."""

from __future__ import annotations

import json
from pathlib import Path

from pydantic import BaseModel

from unipo_hooks.schema import JSON_SCHEMAS

FOLDER = Path(__file__).parent
DIALECT = "https://json-schema.org/draft/2020-12/schema"


def render(model: type[BaseModel]) -> str:
    """The JSON Schema of what a reader accepts as `model`, as the text of its file."""
    return json.dumps({"$schema": DIALECT, **model.model_json_schema()}, indent=2, ensure_ascii=False) + "\n"


def main() -> None:
    """Write every schema, and remove those whose model is gone."""
    for path in FOLDER.glob("*.json"):
        path.unlink()
    for stem, model in JSON_SCHEMAS.items():
        (FOLDER / f"{stem}.json").write_text(render(model), encoding="utf-8")


if __name__ == "__main__":
    main()
