"""The Algorithm Explainer on runs that were really trained: its numbers are Python's, its differences those of `diff`.

What-if on other bundles and every algorithm: `test_analysis.py` holds the analysis itself; here a person uses the page.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from playwright.sync_api import Page, expect
from viewer.conftest import OpenPage
from viewer.pages import AXE, assert_shows, ready, served, written

from unipo_hooks import algorithms, evaluate, open_bundle
from unipo_hooks.bundle.batches import MicroBatch
from unipo_hooks.objective.describe import with_hyper_parameters
from unipo_hooks.objective.evaluate import Evaluation
from unipo_hooks.objective.recorded import as_recorded

FURTHER = 1
"""A further update on its rollout: ratios have left 1, some tokens are clipped on either side."""


def evaluated(run: Path, update: int, **changes: Any) -> tuple[MicroBatch, Evaluation]:
    """The run's own algorithm on an update of one micro-batch, by Python."""
    bundle = open_bundle(run)
    (part,) = bundle.micro_batches(update)
    assert bundle.manifest.algorithm
    spec = with_hyper_parameters(algorithms.get(bundle.manifest.algorithm), changes)
    return part, evaluate(as_recorded(spec, part.batch.arrays), part.batch)


def opened(page: Page, url: str, place: str) -> None:
    """The page at a place of a link; where the page is open already, only the place changes."""
    page.goto(f"{url}#{place}")
    ready(page)
    picked = dict(each.split("=", 1) for each in place.split("&"))
    if "t" in picked:
        page.wait_for_selector(f"[data-testid=explained-token][data-pass='{picked['r']}'][data-token='{picked['t']}']")
    page.wait_for_selector("[data-testid=slot]")
    if "vs" in picked:
        page.wait_for_selector("[data-testid=differing]")


def terms(page: Page, slot: str) -> list[dict[str, Any]]:
    """Terms of a slot's formulas: name, value with all digits, text, whether it wins."""
    found: list[dict[str, Any]] = page.locator(f"[data-slot={slot}] [data-term]").evaluate_all(
        """terms => terms.map(t => ({
            name: t.dataset.name, value: t.dataset.value === undefined ? null : Number(t.dataset.value),
            text: (t.matches(".instead, .number") ? t : t.querySelector(":scope > .number"))?.textContent ?? "",
            wins: !!t.closest(".wins"), loses: !!t.closest(".loses"),
        }))"""
    )
    return found


def one(found: list[dict[str, Any]], name: str) -> dict[str, Any]:
    """The first term of that name that has a number."""
    return next(term for term in found if term["name"] == name and term["value"] is not None)


def tokens_to_look_at(part: MicroBatch, evaluation: Evaluation) -> list[tuple[int, int]]:
    """Tokens of every kind: each gate, each sign, fresh and moved, with and without a push."""
    counted = part.batch["mask"] > 0
    kinds: dict[tuple[Any, ...], tuple[int, int]] = {}
    for b, t in np.argwhere(counted):
        sign = float(np.sign(evaluation.advantages[b, t]))
        moved = float(np.sign(np.round(evaluation.ratio[b, t] - 1, 12)))
        kinds.setdefault((int(evaluation.clipped[b, t]), sign, moved), (int(b), int(t)))
    return list(kinds.values())


def place_of(run: Path, part: MicroBatch, b: int, t: int) -> str:
    """The token as a link names it."""
    responses = open_bundle(run).responses(rollout=part.rollout).to_pylist()
    row = int(part.row_B[b])
    group = next(r["group"] for r in responses if r["row"] == row)
    return f"u={part.update}&g={part.rollout}.{group}&r={part.rank}.{row}&t={t}"


def test_the_numbers_on_the_terms_are_those_of_python(trained: Path, new_page: OpenPage) -> None:
    page = new_page()
    part, python = evaluated(trained, FURTHER)
    rewards, group = part.batch["reward"], np.asarray(part.batch["group"])
    chosen = tokens_to_look_at(part, python)
    assert {int(python.clipped[b, t]) for b, t in chosen} >= {0, 1, 2}, "the update has no clipped tokens to look at"
    worst, compared = 0.0, 0

    def close(found: list[dict[str, Any]] | dict[str, Any], name: str, value: float, tolerance: float = 1e-9) -> None:
        nonlocal worst, compared
        term = found if isinstance(found, dict) else one(found, name)
        error = abs(term["value"] - value) / max(1e-3, abs(value))
        assert error <= tolerance, f"{name}: {term['value']} is shown for {value}"
        if term["text"]:
            assert_shows(term["text"].removeprefix("✓ "), value)
        worst, compared = max(worst, error), compared + 1

    with served(trained) as url:
        for b, t in chosen:
            opened(page, url, place_of(trained, part, b, t))
            siblings = rewards[group == group[b]]
            baseline, scale = terms(page, "baseline"), terms(page, "scale")
            close(baseline, "reward", rewards[b])
            close(baseline, "group mean", siblings.mean())
            close(baseline, "advantage", rewards[b] - siblings.mean())
            # What was recorded is float32.
            close(scale, "group deviation", siblings.std(ddof=1))
            close(scale[0], "advantage", python.advantages[b, t])
            ratio = terms(page, "ratio")
            close(ratio, "ratio", python.ratio[b, t])
            probabilities = [term for term in ratio if term["name"] == "probability"]
            for term, name in zip(probabilities, ("log_probs", "old_log_probs"), strict=True):
                close(term, "probability", math.exp(part.batch[name][b, t]))
            gate = terms(page, "gate")
            unclipped = python.ratio[b, t] * python.advantages[b, t]
            clipped = min(max(python.ratio[b, t], 0.8), 1.2) * python.advantages[b, t]
            close(gate, "unclipped branch", unclipped)
            close(gate, "clipped branch", clipped)
            states = {term["name"]: (term["wins"], term["loses"]) for term in gate if "branch" in term["name"]}
            if abs(unclipped - clipped) <= 1e-12 * abs(unclipped):
                assert set(states.values()) == {(False, False)}, "a tie has a winner"
            else:
                winner, loser = sorted(("unclipped branch", "clipped branch"), key=lambda n: one(gate, n)["value"])
                assert states == {winner: (True, False), loser: (False, True)}
            close(terms(page, "aggregation"), "weight in the loss", python.aggregation[b, t])
            rows = page.locator("[data-testid=result] tr[data-row]").evaluate_all(
                "r => Object.fromEntries(r.map(e => [e.dataset.row, Number(e.querySelector('td').dataset.value)]))"
            )
            for name, value in (
                ("Token objective", python.token_objective[b, t]),
                ("Push by the policy term", -python.policy_weight[b, t]),
                ("Push by constraints", -python.constraint_weight[b, t]),
                ("Push", -python.gradient_weight[b, t]),
            ):
                error = abs(rows[name] - value) / max(1e-6, abs(value))
                assert error <= 1e-9, name
                worst, compared = max(worst, error), compared + 1
            words = page.get_by_test_id("explained-token").inner_text()
            assert ("Clipped" in words) == (1 <= python.clipped[b, t] <= 5), words
            assert page.get_by_test_id("fan-in").locator("circle").count() == len(siblings)
    print(f"\n{compared} numbers of {len(chosen)} tokens compared with Python: largest relative error {worst:.1e}")


@pytest.fixture(scope="module")
def tied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained run with a reference policy, that goes through its rollout twice."""
    from trl_runs import GRPOTrainer, save_small_model, trainer_for

    from unipo_hooks import UnipoCallback

    folder = tmp_path_factory.mktemp("tied")
    unipo = UnipoCallback(folder / "run", strict=True)
    model = save_small_model(folder / "model")
    trainer_for(
        model, folder, callbacks=[unipo], cls=GRPOTrainer, num_iterations=2, beta=0.05, max_steps=2, learning_rate=1e-2
    ).train()
    assert unipo.path is not None
    return Path(unipo.path)


def test_the_constraint_is_that_of_python(tied: Path, new_page: OpenPage) -> None:
    page = new_page()
    part, python = evaluated(tied, FURTHER)
    moved = np.argwhere((part.batch["mask"] > 0) & (np.abs(python.constraint) > 1e-6))
    assert len(moved), "no token has left the reference"
    worst = 0.0
    with served(tied) as url:
        for b, t in (moved[0], moved[-1]):
            opened(page, url, place_of(tied, part, b, t))
            found = terms(page, "constraint")
            log = part.batch["ref_log_probs"][b, t] - part.batch["log_probs"][b, t]
            for name, value in (
                ("beta", 0.05),
                ("against the reference", math.exp(log)),
                ("log-ratio to the reference", log),
                ("penalty", python.constraint[b, t]),
            ):
                term = one(found, name)
                error = abs(term["value"] - value) / max(1e-6, abs(value))
                assert error <= 1e-6, name
                assert_shows(term["text"], value)
                worst = max(worst, error)
    print(f"\nthe constraint of 2 tokens: largest relative error {worst:.1e}")


def test_a_what_if_is_what_python_makes_of_it_and_a_link_reopens_it(trained: Path, new_page: OpenPage) -> None:
    page = new_page()
    part, own = evaluated(trained, FURTHER)
    _, other = evaluated(trained, FURTHER, **{"bounds.epsilon_high": 0.02})
    signs = [np.sign(np.where(np.abs(e.gradient_weight) > 1e-12, -e.gradient_weight, 0)) for e in (own, other)]
    moved = np.argwhere(signs[0] != signs[1])
    expected = {
        (
            f"{part.rank}.{part.row_B[b]}",
            int(t),
            "vanishes" if signs[1][b, t] == 0 else "appears" if signs[0][b, t] == 0 else "sign",
        )
        for b, t in moved
    }
    assert len(expected) > 3, "the what-if changes next to nothing"
    here = place_of(trained, part, *moved[0]).split("&r=")[0]
    with served(trained) as url:
        opened(page, url, here)
        expect(page.get_by_test_id("badge")).to_have_attribute("data-state", "reproduced")
        before = page.locator(".tok").evaluate_all("tokens => tokens.map(t => t.className)")
        page.get_by_test_id("what-if-fold").click()
        field = page.locator("[data-path='bounds.epsilon_high'] .field")
        field.fill("0.02")
        field.press("Enter")
        expect(page.get_by_test_id("badge")).to_have_attribute("data-state", "what-if")
        shown = page.get_by_test_id("what-if-loss").get_attribute("data-value") or "nan"
        loss, error = float(shown), abs(float(shown) - other.loss)
        assert error <= 1e-12
        page.wait_for_function(
            "b => b !== [...document.querySelectorAll('.tok')].map(t => t.className).join()", arg=",".join(before)
        )
        while page.get_by_role("button", name="Show more").count():
            page.get_by_role("button", name="Show more").click()
        rows = page.locator("[data-testid=changed] button[data-token]")
        listed = {
            tuple(row)
            for row in rows.evaluate_all("r => r.map(b => [b.dataset.pass, Number(b.dataset.token), b.dataset.what])")
        }
        assert listed == expected
        assert page.get_by_test_id("what-if-changed").inner_text() == str(len(expected))
        rows.first.click()
        first = (rows.first.get_attribute("data-pass"), rows.first.get_attribute("data-token"))
        told = page.get_by_test_id("explained-token")
        expect(told).to_have_attribute("data-pass", first[0] or "")
        expect(told).to_have_attribute("data-token", first[1] or "")

        link = page.url
        again = new_page()
        again.goto(link)
        ready(again)
        expect(again.get_by_test_id("what-if-loss")).to_have_attribute("data-value", shown)
        expect(again.get_by_test_id("explained-token")).to_have_attribute("data-token", first[1] or "")
        again.get_by_test_id("what-if-reset").click()
        expect(again.get_by_test_id("badge")).to_have_attribute("data-state", "reproduced")
        assert "what=" not in again.url
    print(
        f"\nloss of the what-if: {loss} here, {other.loss} in Python, error {error:.1e}; {len(expected)} pushes change"
    )


def test_another_algorithm_and_aggregation_recompute_and_say_what_is_missing(trained: Path, new_page: OpenPage) -> None:
    page = new_page()
    bundle = open_bundle(trained)
    (part,) = bundle.micro_batches(FURTHER)
    with served(trained) as url:
        opened(page, url, f"u={FURTHER}")
        page.get_by_test_id("what-if-fold").click()
        page.get_by_test_id("what-if-algorithm").click()
        listed = page.locator("[data-testid=what-if-algorithm-list] [data-id]:not([data-id=''])")
        every = [spec.id for spec in algorithms.every() if spec.display is None]
        assert sorted(listed.evaluate_all("r => r.map(b => b.dataset.id)")) == sorted(every)
        # It needs a reference policy, which the run had none of.
        grpo = page.locator("[data-testid=what-if-algorithm-list] [data-id='grpo']")
        expect(grpo).to_have_attribute("aria-disabled", "true")
        expect(grpo).to_contain_text("ref_log_probs")
        page.get_by_test_id("what-if-algorithm-search").fill("gspo")
        page.locator("[data-testid=what-if-algorithm-list] [data-id='gspo.trl']").click()
        gspo = evaluate(algorithms.get("gspo.trl"), part.batch)
        loss = page.get_by_test_id("what-if-loss")
        expect(loss).to_be_visible()
        assert abs(float(loss.get_attribute("data-value") or "nan") - gspo.loss) <= 1e-6 * max(1, abs(gspo.loss))

        page.get_by_test_id("what-if-aggregation").select_option("token_mean")
        page.wait_for_function("location.hash.includes('aggregation.part')")
        swapped = gspo.spec.model_copy(
            update={
                "parts": gspo.spec.parts.model_validate(
                    gspo.spec.parts.model_dump() | {"aggregation": {"part": "token_mean"}}
                )
            }
        )
        python = evaluate(swapped, part.batch).loss
        assert abs(float(loss.get_attribute("data-value") or "nan") - python) <= 1e-6 * max(1, abs(python))
        page.keyboard.press("Escape")
        page.locator("body").press("w")
        expect(page.get_by_test_id("badge")).to_have_attribute("data-state", "reproduced")


def test_beside_another_algorithm_exactly_the_differing_slots_are_marked(trained: Path, new_page: OpenPage) -> None:
    page = new_page()
    with served(trained) as url:
        for other in ("dapo", "gspo", "cispo", "dapo.trl"):
            beside(page, url, trained, other)


def beside(page: Page, url: str, trained: Path, other: str) -> None:
    bundle = open_bundle(trained)
    assert bundle.manifest.algorithm
    spec = algorithms.get(bundle.manifest.algorithm)
    expected = {difference.slot for difference in algorithms.diff(spec, other)} - {"mixture"}
    part, python = evaluated(trained, FURTHER)
    b, t = tokens_to_look_at(part, python)[-1]
    opened(page, url, f"{place_of(trained, part, b, t)}&vs={other}")
    expect(page.get_by_test_id("beside")).to_have_text(re.compile(re.escape(algorithms.get(other).name)))
    marked = page.locator("[data-slot][data-differs=true]").evaluate_all("s => s.map(e => e.dataset.slot)")
    assert set(marked) == expected
    assert len(marked) == len(expected)
    words = page.get_by_test_id("differing").inner_text()
    assert words.startswith(f"{len(expected)} of 12 slots differ" if expected else "No slot differs")
    for slot in expected:
        assert page.locator(f"[data-slot={slot}] [data-testid=side]").count() == 2, slot
    if other == "gspo":
        both = evaluate(algorithms.get(other), part.batch)
        values = [
            term["value"] for term in terms(page, "ratio") if term["name"] == "ratio" and term["value"] is not None
        ]
        assert abs(values[0] - python.ratio[b, t]) < 1e-9
        assert any(abs(value - both.ratio[b, t]) < 1e-9 for value in values[1:])
    page.locator("body").press("x")
    expect(page.locator("[data-slot][data-differs]")).to_have_count(0)
    page.locator("body").press("x")
    expect(page.locator("[data-slot][data-differs=true]")).to_have_count(len(expected))


def test_every_term_opens_its_explanation_by_mouse_and_by_keyboard(trained: Path, new_page: OpenPage) -> None:
    page = new_page()
    with served(trained) as url:
        opened(page, url, f"u={FURTHER}")
        for slot in ("baseline", "scale", "ratio", "bounds", "gate", "aggregation"):
            places = page.locator(f"[data-slot={slot}] [data-term]")
            for n in range(places.count()):
                name = places.nth(n).get_attribute("data-name") or ""
                places.nth(n).evaluate("term => term.dispatchEvent(new MouseEvent('click', {bubbles: true}))")
                expect(page.locator(f"[data-slot={slot}] [data-testid=term] b")).to_have_text(name)
                assert len(page.locator(f"[data-slot={slot}] [data-testid=term] p").inner_text()) > 20, (slot, name)
                places.nth(n).evaluate("term => term.dispatchEvent(new MouseEvent('click', {bubbles: true}))")
        first = page.locator("[data-slot=ratio] [data-term][tabindex='0']")
        first.focus()
        page.keyboard.press("ArrowRight")
        page.keyboard.press("Enter")
        expect(page.locator("[data-slot=ratio] [data-testid=term]")).to_be_visible()
        page.locator("[data-slot=gate] [data-testid=part]").click()
        expect(page.locator("[data-slot=gate] [data-testid=explanation]")).to_contain_text(
            "A token is pushed in the direction"
        )


def test_the_badge_opens_the_proof(trained: Path, new_page: OpenPage) -> None:
    page = new_page()
    part, python = evaluated(trained, FURTHER)
    with served(trained) as url:
        opened(page, url, f"u={FURTHER}")
        page.get_by_test_id("badge").click()
        proof = page.get_by_test_id("proof")
        expect(proof).to_be_visible()
        cells = [text.replace("−", "-") for text in proof.locator("tbody td").all_inner_texts()]
        assert abs(float(cells[0]) - (part.loss or 0)) <= 1e-8
        assert abs(float(cells[1]) - python.loss) <= 1e-8
        page.keyboard.press("Escape")
        expect(proof).to_be_hidden()


def test_a_run_that_names_no_algorithm_says_what_still_works(tmp_path: Path, new_page: OpenPage) -> None:
    page = new_page()
    with served(written(tmp_path / "run", info={"algorithm": None})) as url:
        page.goto(url)
        ready(page)
        expect(page.get_by_test_id("unknown")).to_contain_text("Everything that was captured is still shown")
        page.get_by_test_id("what-if-fold").click()
        page.get_by_test_id("what-if-algorithm").click()
        page.get_by_test_id("what-if-algorithm-search").fill("dr. grpo")
        page.locator("[data-testid=what-if-algorithm-list] [data-id='dr_grpo']").click()
        page.wait_for_selector("[data-slot=gate] math")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_serious_for_axe(trained: Path, new_page: OpenPage, scheme: str) -> None:
    page = new_page(color_scheme=scheme, viewport={"width": 1280, "height": 720})
    axe = AXE.read_text(encoding="utf-8")
    with served(trained) as url:
        opened(page, url, f"u={FURTHER}&vs=gspo&what=dr_grpo;bounds.epsilon_high=0.1")
        page.evaluate(axe)
        faults = page.evaluate(
            """async () => (await axe.run('[data-pane=algorithm]')).violations
                .filter(v => ['serious', 'critical'].includes(v.impact))
                .map(v => [v.id, v.nodes.map(n => n.html.slice(0, 160))])"""
        )
        assert faults == []


def test_it_fits_a_phone(trained: Path, new_page: OpenPage) -> None:
    width = 360
    page = new_page(viewport={"width": width, "height": 780})
    with served(trained) as url:
        page.goto(f"{url}#u={FURTHER}&view=algorithm&vs=gspo&what=dr_grpo")
        page.wait_for_selector("[data-slot=gate] math")
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        body = page.locator("[data-pane=algorithm] .body")
        assert body.evaluate("pane => pane.scrollWidth - pane.clientWidth") <= 0
        small = page.locator("[data-pane=algorithm] button:visible").evaluate_all(
            "all => all.filter(b => b.getBoundingClientRect().height < 35.5).map(b => b.outerHTML.slice(0, 90))"
        )
        assert small == []
