"""A run of verl's is read as any other: by Python, by the page's analysis, and by a person who uses the page.

The bundle is a real one, captured of main_ppo by `tests/verl_cpu/make_fixture.py`: GAE with a critic, gspo, a KL
penalty and an entropy bonus.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from playwright.sync_api import expect
from typer.testing import CliRunner
from viewer.analysing import WhatIfs, asked, compared, of_what_if, question
from viewer.conftest import OpenPage
from viewer.pages import assert_shows, card, ready, served, text_of

from unipo_hooks import algorithms, cli, evaluate, open_bundle
from unipo_hooks.bundle.batches import MicroBatch
from unipo_hooks.export.canonical import canonical_run
from unipo_hooks.objective.describe import with_hyper_parameters
from unipo_hooks.objective.evaluate import Evaluation
from unipo_hooks.objective.recorded import as_recorded

RUN = Path(__file__).parents[1] / "fixtures" / "verl" / "gae"
UPDATES = 4
FURTHER = 1
"""A further update on its rollout: ratios have left 1."""

WHAT_IFS: WhatIfs = [
    ("grpo.verl", {}),
    ("dapo", {}),
    ("dr_grpo", {}),
    ("cispo", {"bounds.ratio_high": 1.01}),
    ("rloo_verl", {}),
    ("gmpo.verl", {}),
]
"""Algorithms whose advantages follow from rewards, and their hyper-parameters."""
TIGHTER = {"bounds.epsilon_low": 0.002, "bounds.epsilon_high": 0.004, "constraint.0.beta": 0.5}
"""Of the run's own, whose advantages were its critic's."""


def evaluated(number: int, **changes: float) -> list[tuple[MicroBatch, Evaluation]]:
    """The run's own algorithm on an update, by Python."""
    bundle = open_bundle(RUN)
    spec = with_hyper_parameters(algorithms.get(bundle.manifest.algorithm), changes)
    return [(part, evaluate(as_recorded(spec, part.batch.arrays), part.batch)) for part in bundle.micro_batches(number)]


def call(*arguments: object) -> str:
    """What the command line says to scripts and people."""
    result = CliRunner().invoke(cli.app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    return result.output


def test_python_reads_it_as_any_bundle(tmp_path: Path) -> None:
    bundle = open_bundle(RUN)
    parts = [pair for number in range(UPDATES) for pair in evaluated(number)]
    errors = [abs(found.loss - part.loss) / max(1.0, found.magnitude) for part, found in parts if part.loss is not None]
    print(f"\n{len(errors)} losses of the trainer's: largest difference {max(errors):.1e}")
    assert len(errors) == len(parts) and all(part.whole for part, _ in parts) and max(errors) <= 1e-6
    assert {difference.slot for difference in algorithms.diff(bundle.manifest.algorithm, "gspo")} >= {"baseline"}
    run = canonical_run(bundle)
    assert [entry.step for entry in run.entries] == list(range(UPDATES))
    responses = [response for entry in run.entries for prompt in entry.prompts for response in prompt.responses]
    assert sum(len(response.tokens.ids) for response in responses) == bundle.tokens(range(UPDATES)).num_rows
    assert "the trainer's: largest gap" in call("info", RUN)
    assert "verl 0.9" in call("info", RUN)
    call("validate", RUN)
    call("export", RUN, "--canonical", tmp_path / "run.json")
    call("export", RUN, "--html", tmp_path / "run.html")


def test_every_token_is_on_the_page_what_it_is_in_python(analysis: Path) -> None:
    worst = compared(analysis, RUN, list(range(UPDATES)), WHAT_IFS)
    answers = asked(analysis, [question(RUN, number, [(None, TIGHTER)]) for number in range(UPDATES)])
    for number, answer in enumerate(answers):
        loss = sum(found.loss for _, found in evaluated(number, **TIGHTER))
        worst = max(worst, abs(answer["answers"][1]["loss"] - loss) / abs(loss))
    print(f"largest relative error {worst:.1e}")
    assert worst <= 1e-12


def test_a_person_sees_what_verl_computed_and_what_another_algorithm_would_have(new_page: OpenPage) -> None:
    page, bundle = new_page(), open_bundle(RUN)
    parts = evaluated(FURTHER)
    part, python = parts[0]
    b, t = (int(n) for n in np.argwhere(part.batch["mask"] > 0)[0])
    row = int(part.row_B[b])
    stored = bundle.tokens(FURTHER, part.rollout).to_pandas()
    token = stored[(stored["row"] == row) & (stored["position"] == t)].iloc[0]
    response = next(r for r in bundle.responses(part.rollout).to_pylist() if r["row"] == row)
    place = f"u={FURTHER}&g={part.rollout}.{response['group']}"
    with served(RUN) as url:
        page.goto(f"{url}#{place}")
        ready(page)
        expect(page.get_by_test_id("badge")).to_have_attribute("data-state", "reproduced")
        said = text_of(page.get_by_test_id("labels").first)
        assert f"data_source {response['labels.data_source']}" in said
        mine = page.locator(f"[data-testid=response][data-row='{part.rank}.{row}']")
        mine.scroll_into_view_if_needed()
        mine.locator(".tok").nth(t).click()
        shown = card(page)
        channels = ("values", "returns", "rewards", "advantages", "old_log_probs", "ref_log_probs", "rollout_log_probs")
        for name in (*channels, "log_probs", "entropies"):
            assert_shows(shown[name], float(token[name]))
        assert_shows(shown["push"], float(-python.gradient_weight[b, t]))

        page.goto(f"{url}#{place}&r={part.rank}.{row}&t={t}")
        page.wait_for_selector("[data-testid=explained-token]")
        page.wait_for_selector("[data-slot=gate] math")
        rows = numbers(page)
        # gamma and lambda are 1: what is left of the return where the critic's estimate is taken off, before whitening.
        baseline = page.locator("[data-slot=baseline]")
        expect(baseline).to_contain_text("Generalised advantage estimation")
        terms = baseline.locator("[data-term]")
        found = dict(terms.evaluate_all("all => all.map(e => [e.dataset.name, Number(e.dataset.value)])"))
        assert found["value"] == float(token["values"])
        assert abs(found["advantage"] - float(token["returns"] - token["values"])) <= 1e-6
        # gspo compares whole responses: beside ρ its formula has the response's ratio, not the token's.
        ratios = page.locator("[data-slot=ratio] [data-term]").evaluate_all(
            "all => all.map(e => [e.dataset.name, Number(e.dataset.value)])"
        )
        of_response, of_token = float(python.ratio[b, t]), float(np.exp(token["log_probs"] - token["old_log_probs"]))
        print(f"\nratios {ratios}; of the token alone {of_token}")
        assert abs(of_response - of_token) > 1e-4
        assert [name for name, _ in ratios[:2]] == ["ratio", "response ratio"]
        assert all(abs(value - of_response) <= 1e-9 for _, value in ratios[:2])
        for name, value in (
            ("Push", -python.gradient_weight[b, t]),
            ("Push by constraints", -python.constraint_weight[b, t]),
            ("Token objective", python.token_objective[b, t]),
        ):
            assert abs(rows[name] - value) <= 1e-9 * max(1.0, abs(value))
        print(f"\ntoken {token['strings']!r}: {shown}")

        page.get_by_test_id("what-if-fold").click()
        page.get_by_test_id("what-if-algorithm").click()
        page.get_by_test_id("what-if-algorithm-search").fill("cispo")
        page.locator("[data-testid=what-if-algorithm-list] [data-id='cispo']").click()
        expect(page.get_by_test_id("badge")).to_have_attribute("data-state", "what-if")
        loss = float(page.get_by_test_id("what-if-loss").get_attribute("data-value") or "nan")
    rollouts = {part.rollout: bundle.responses(part.rollout)}
    other = of_what_if(bundle, [each for each, _ in parts], rollouts, algorithms.get("cispo"))
    error = abs(loss - sum(found.loss for _, found in other))
    print(f"loss under cispo {loss}, off by {error:.1e}; under the run's own {sum(found.loss for _, found in parts)}")
    assert error <= 1e-9


def numbers(page: Any) -> dict[str, float]:
    """What the lesson on a token comes to, by row."""
    found: dict[str, float] = page.locator("[data-testid=result] tr[data-row]").evaluate_all(
        "r => Object.fromEntries(r.map(e => [e.dataset.row, Number(e.querySelector('td').dataset.value)]))"
    )
    return found
