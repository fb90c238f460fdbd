"""An algorithm's definition from outside: a JSON file, UNIPO's own format. Data alone is read, never code."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from unipo_hooks.algorithm_spec import AlgorithmSpec
from unipo_hooks.errors import AlgorithmError
from unipo_hooks.objective.checks import explained


def read(path: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises AlgorithmError, naming the file, where there is none."""
    try:
        definition = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise AlgorithmError(f"{path}: cannot be read ({error.strerror or error})") from None
    except (ValueError, RecursionError) as error:
        raise AlgorithmError(f"{path}: not JSON ({error})") from None
    if not isinstance(definition, dict):
        raise AlgorithmError(
            f"{path}: an object is needed, with id, name and parts; found a {type(definition).__name__}"
        )
    return definition


def parsed(definition: dict[str, Any], where: str) -> AlgorithmSpec:
    """The spec of a definition. Raises AlgorithmError naming `where` and the JSON path."""
    try:
        return AlgorithmSpec.model_validate(definition)
    except ValidationError as error:
        raise AlgorithmError(f"{where}: {explained(error)}") from None


def from_unipo(definition: Mapping[str, Any], where: str = "the definition") -> dict[str, Any]:
    """An algorithm of UNIPO's own format (`id, name, title, bindings, cards`) as one that is shown and not computed."""
    for name in ("id", "name", "cards"):
        if name not in definition:
            raise AlgorithmError(f"{where}: {name}: UNIPO's format needs it")
    return {
        # UNIPO's own ids, such as grpo, are those of algorithms that can be computed.
        "id": f"unipo.{definition['id']}",
        "name": definition["name"],
        "title": definition.get("title", ""),
        "source": "UNIPO cards",
        "family": "shown only",
        "exact": False,
        "inexact": "it came as UNIPO cards, which are shown and cannot be computed",
        "parts": {"gate": {"part": "log_prob"}, "aggregation": {"part": "token_mean"}},
        "display": {key: definition[key] for key in ("bindings", "cards", "defaultVisibleCards") if key in definition},
    }
