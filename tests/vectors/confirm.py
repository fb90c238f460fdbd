"""Writes registry/confirmed.json: what each registered algorithm was compared with, and with what error.

    python tests/vectors/confirm.py

Everything in it follows from tests/vectors.json; tests/objective/test_vectors.py compares the two.
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from vectors.format import CONFIRMED, errors, evaluated, sections

COVERS = {
    "objective": ("loss", "policy_loss", "gradient_weight", "token_objective", "policy_weight"),
    "advantages": ("advantages",),
}
"""What of an algorithm a comparison covers → the expected values that show it."""


def confirmed() -> dict[str, list[dict[str, Any]]]:
    """Algorithm → comparisons, each with what it was compared with, what it covers, the largest error and the cases.

    A case that computes the advantages as well as the objective covers both.
    """
    found: dict[str, dict[str, dict[str, Any]]] = defaultdict(dict)
    for cases in sections().values():
        for case in cases:
            if not isinstance(case["algorithm"], str) or "error" in case["expected"] or not case["against"]:
                continue
            own = found[case["algorithm"]].setdefault(case["against"], {"covers": set(), "error": 0.0, "cases": 0})
            measured = errors(case, evaluated(case))
            own["covers"] |= {what for what, names in COVERS.items() if any(name in measured for name in names)}
            own["error"] = max(own["error"], *measured.values())
            own["cases"] += 1
    return {
        algorithm: [
            {
                "against": against,
                "covers": sorted(own["covers"]),
                "error": float(f"{own['error']:.1e}"),
                "cases": own["cases"],
            }
            for against, own in sorted(entries.items())
        ]
        for algorithm, entries in sorted(found.items())
    }


if __name__ == "__main__":
    CONFIRMED.write_text(json.dumps(confirmed(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
