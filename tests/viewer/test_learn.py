"""Learning mode: the walk through one update, its numbers against Python's, and how it is paused, turned and left."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from playwright.sync_api import expect
from viewer.conftest import OpenPage
from viewer.pages import AXE, SMOLLM2, assert_shows, served, text_of

from unipo_hooks import evaluate, open_bundle
from unipo_hooks.algorithm_spec import AlgorithmSpec
from unipo_hooks.algorithms import given_advantages

if TYPE_CHECKING:
    from playwright.sync_api import Page

SHOWN = (
    {"update", "groups", "rollout"},
    {"responses"},
    {"best", "worst", "mean", "scored"},
    {"responses", "response", "advantage", "mean", "reward", "difference", "std", "quotient", "above", "below"},
    {"token", "response", "p_then", "low", "high", "clipped", "counted", "objective", "push", "one_in"},
    {"tokens", "responses", "one_in", "objective", "weight", "term", "sum", "loss", "trainer_loss"},
    {"learning_rate", "grad_norm", "reward"},
)
"""What each beat says in numbers at the least."""
BEATS = ("Prompts", "Responses", "Rewards", "Advantages", "Token objectives", "Aggregation", "Update")
CALM = {"reduced_motion": "reduce"}


def open_at(page: Page, url: str, beat: int = 1, update: int | None = None) -> None:
    at = f"u={update}&" if update is not None else ""
    page.goto(f"{url}#{at}learn={beat}")
    page.wait_for_selector(f"[data-testid=lesson][data-beat='{beat}'] [data-what]")
    settled(page, beat)


def settled(page: Page, beat: int) -> None:
    """Wait until the beat is there with all it has to say."""
    page.wait_for_selector(f"[data-testid=lesson][data-beat='{beat}'] [aria-busy=false]")


def go(page: Page, beat: int) -> None:
    page.click(f"[data-testid=beats] li:nth-child({beat}) button")
    settled(page, beat)


def numbers(page: Page) -> dict[str, float]:
    """The numbers of the beat, by what they are, in full; each is what is read there, rounded."""
    found: list[tuple[str, float, str]] = page.locator("[data-testid=lesson] [data-what]").evaluate_all(
        "all => all.map(e => [e.dataset.what, Number(e.dataset.exact), e.innerText])"
    )
    for _, exact, text in found:
        assert_shows(text.replace("\u2009", ""), exact)
    return {what: exact for what, exact, _ in found}


def walk(page: Page) -> list[tuple[str, dict[str, float]]]:
    """Every beat's text and numbers, by the button that leads on."""
    found = []
    for beat in range(1, 8):
        settled(page, beat)
        found.append((text_of(page.locator("[data-testid=lesson] .read")), numbers(page)))
        if beat < 7:
            page.click("[data-testid=lesson-next]")
    return found


def place(page: Page) -> dict[str, str]:
    found: dict[str, str] = page.evaluate("Object.fromEntries(new URLSearchParams(location.hash.slice(1)))")
    return found


def check_numbers(path: Path, at: dict[str, str], beats: list[dict[str, float]]) -> float:
    """Compare every number of a walk with Python's reading of the bundle; the largest relative error."""
    bundle = open_bundle(path)
    update = int(at["u"])
    rollout, group = (int(part) for part in at["g"].split("."))
    row, token = int(at["r"].split(".")[1]), int(at["t"])
    metrics = {m["update"]: m for m in bundle.metrics().to_pylist()}
    inside = bundle.responses(update=update).to_pylist()
    siblings = [r for r in bundle.responses(rollout=rollout).to_pylist() if r["group"] == group]
    ranked = sorted({r["row"]: r for r in siblings}.values(), key=lambda r: (-r["reward"], r["row"]))
    own = next(r for r in ranked if r["row"] == row)
    rewards = np.array([r["reward"] for r in ranked])
    lengths = [r["length"] for r in ranked]

    def measured(number: int) -> dict[str, Any]:
        """The token at an update."""
        table = bundle.tokens(update=number).to_pylist()
        own: list[dict[str, Any]] = [t for t in table if (t["rollout"], t["row"]) == (rollout, row)]
        return own[token]

    now = measured(update)
    own_group = {r["row"] for r in ranked}
    manifest = json.loads((path / "manifest.json").read_text())
    spec = given_advantages(AlgorithmSpec.model_validate(manifest["attempts"][0]["algorithm"]))
    allowed = manifest["attempts"][0]["algorithm"]["parts"]["bounds"]
    loss, pull = 0.0, 0.0
    shares, pushes, clips, objectives = {}, {}, {}, {}
    for micro in bundle.micro_batches(update=update):
        found = evaluate(spec, micro.batch)
        loss += float(found.loss)
        for b, r in enumerate(micro.row_B.tolist()):
            key = micro.rollout, r
            shares[key], pushes[key] = found.aggregation[b], -found.gradient_weight[b]
            clips[key], objectives[key] = found.clipped[b], found.token_objective[b]
            if key == (rollout, row):
                pull = -float(found.constraint_weight[b][token])
    here = [key for key in shares if key[0] == rollout and key[1] in own_group]
    counts = {key: shares[key] != 0 for key in shares}
    push = float(pushes[rollout, row][token])
    share, objective = float(shares[rollout, row][token]), float(objectives[rollout, row][token])
    spread = rewards.std(ddof=1)
    p_then, p_now = math.exp(now["old_log_probs"]), math.exp(now["log_probs"])
    advantage = now["advantages"]
    components = {f"component.{i}": ranked[-1][f"reward_components.{i}"] for i in range(len(manifest["reward_names"]))}
    true: list[dict[str, float]] = [
        {"update": update, "groups": len({(r["rollout"], r["group"]) for r in inside}), "rollout": rollout},
        {"responses": len(ranked), "length": max(lengths), "shortest": min(lengths), "longest": max(lengths),
         "in_update": len({r["row"] for r in inside if r["rollout"] == rollout} & own_group)},
        {"best": rewards.max(), "worst": rewards.min(), "mean": rewards.mean(), "scored": len(ranked),
         "functions": len(components), "reward": rewards.min(), **components},
        {"responses": len(ranked), "response": ranked.index(own) + 1, "advantage": advantage, "mean": rewards.mean(),
         "reward": own["reward"], "difference": own["reward"] - rewards.mean(), "std": spread,
         "quotient": (own["reward"] - rewards.mean()) / (spread + 1e-4),
         "above": int((rewards > rewards.mean()).sum()), "below": int((rewards < rewards.mean()).sum())},
        {"token": token + 1, "response": ranked.index(own) + 1, "p_then": p_then, "p_now": p_now,
         "ratio": p_now / p_then, "used_ratio": p_now / p_then, "objective": objective, "policy": push - pull,
         "low": 1 - allowed["epsilon_low"], "high": 1 + allowed["epsilon_high"],
         "advantage": advantage, "push": push, "pull": pull, "one_in": 1 / share,
         "clipped": sum(int(((clips[k] > 0) & (clips[k] < 6) & counts[k]).sum()) for k in here),
         "counted": sum(int(counts[k].sum()) for k in here), "tokens": sum(int(counts[k].sum()) for k in here),
         "harder": sum(int((np.abs(pushes[k]) > abs(push)).sum()) for k in here)},
        {"tokens": sum(int(c.sum()) for c in counts.values()), "responses": sum(bool(c.any()) for c in counts.values()),
         "one_in": 1 / share, "weight": share, "objective": objective, "term": share * objective,
         "sum": -loss, "loss": loss, "trainer_loss": metrics[update]["policy_loss"]},
        {name: metrics[update][name] for name in ("learning_rate", "grad_norm", "reward")},
    ]  # fmt: skip
    step, last = beats[6], true[6]
    later = [u for u, m in metrics.items() if u > update and rollout not in m["rollouts"]]
    if later:
        last |= {"next": later[0], "next_reward": metrics[later[0]]["reward"]}
        last |= {"last": later[-1], "last_reward": metrics[later[-1]]["reward"]}
    if "p_after" in step:
        after = int(step.get("after", update + 1))
        last |= {"p_now": p_now, "p_after": math.exp(measured(after)["log_probs"]), "after": after}
    errors = []
    for beat, (shown, known) in enumerate(zip(beats, true, strict=True), 1):
        assert SHOWN[beat - 1] <= shown.keys(), f"beat {beat} does not show {SHOWN[beat - 1] - shown.keys()}"
        for name, value in shown.items():
            assert name in known, f"beat {beat} shows {name}, which nothing says"
            errors.append((abs(value - known[name]) / max(abs(known[name]), 1e-3), f"beat {beat}: {name} {value}"))
    worst = max(errors)
    print(f"\n{path.name}, update {update}: {len(errors)} numbers, largest relative error {worst[0]:.1e} ({worst[1]})")
    return worst[0]


def test_every_number_of_a_walk_is_the_bundles(new_page: OpenPage, trained: Path) -> None:
    walks = []
    for bundle, update in ((trained, 12), (SMOLLM2, None)):
        page = new_page(**CALM)
        with served(bundle) as url:
            open_at(page, url, update=update)
            walks.append(walk(page))
            assert check_numbers(bundle, place(page), [numbers for _, numbers in walks[-1]]) < 1e-5
            go(page, 1)
            asked = page.locator("[data-testid=lesson] q").inner_text().split("…")[0].strip()
        prompts = {" ".join(r["prompt"].split()) for r in open_bundle(bundle).responses().to_pylist()}
        assert asked and any(asked in prompt for prompt in prompts)
    assert {"p_now", "ratio", "policy", "pull"} <= walks[1][4][1].keys(), "a policy that has moved, held by a reference"
    assert "p_after" in walks[0][6][1], "nothing is said of what the step did to the token"
    for beat, ((first, _), (second, _)) in enumerate(zip(*walks, strict=True), 1):
        assert first != second, f"beat {beat} says the same of two bundles"


def test_the_walk_is_paused_turned_skipped_and_left(new_page: OpenPage, trained: Path) -> None:
    page = new_page()
    with served(trained) as url:
        page.clock.install()
        page.goto(f"{url}#u=7")
        page.wait_for_selector(".tok[class*=' ']")
        page.click("[data-testid=learn]")
        lesson = page.locator("[data-testid=lesson]")
        expect(lesson).to_have_attribute("data-playing", "true")
        expect(lesson).to_be_focused()
        expect(lesson).to_have_attribute("data-beat", "1")
        page.clock.run_for(30_000)
        expect(lesson).not_to_have_attribute("data-beat", "1")
        page.click("[data-testid=lesson-play]")
        page.click("[data-testid=beats] li:nth-child(2) button")
        page.clock.run_for(120_000)
        expect(lesson).to_have_attribute("data-beat", "2")
        lesson.focus()
        for key, beat in (("ArrowRight", "3"), ("ArrowRight", "4"), ("ArrowLeft", "3")):
            page.keyboard.press(key)
            expect(lesson).to_have_attribute("data-beat", beat)
        page.keyboard.press(" ")
        expect(lesson).to_have_attribute("data-playing", "true")
        page.keyboard.press(" ")
        expect(lesson).to_have_attribute("data-playing", "false")
        page.click("[data-testid=beats] li:nth-child(6) button")
        expect(lesson).to_have_attribute("data-beat", "6")
        assert page.locator("[data-dim]").count() > 0
        assert page.locator("[data-testid=lesson] [data-dim]").count() == 0
        page.click("[data-testid=lesson-back]")
        expect(lesson).to_have_attribute("data-beat", "5")
        lesson.focus()
        page.keyboard.press("Escape")
        expect(lesson).to_have_count(0)
        assert page.locator("[data-dim]").count() == 0 and place(page) == {"u": "7"}, (
            "what nobody picked is left behind"
        )


def test_a_link_opens_the_same_beat_and_nothing_moves_by_itself(new_page: OpenPage, trained: Path) -> None:
    page = new_page(**CALM)
    with served(trained) as url:
        open_at(page, url, beat=4, update=7)
        lesson = page.locator("[data-testid=lesson]")
        assert page.locator("[data-testid=beats] [aria-current=step]").inner_text().split("\n")[-1] == "Advantages"
        expect(lesson).to_have_attribute("data-playing", "false")
        page.click("[data-testid=lesson-close]")
        page.click("[data-testid=learn]")
        expect(lesson).to_have_attribute("data-playing", "false")
        # Nothing is too faint to be read once it is pointed at.
        page.locator("[data-dim]").first.hover()
        assert page.locator("[data-dim]").first.evaluate("e => getComputedStyle(e).opacity") == "1"


def test_a_what_if_and_a_comparison_rest_until_it_is_closed(new_page: OpenPage) -> None:
    page = new_page(**CALM)
    with served(SMOLLM2) as url:
        page.goto(f"{url}#u=1&what=dapo&vs=dr_grpo&learn=5")
        page.wait_for_selector("[data-testid=lesson][data-beat='5'] [data-what]")
        settled(page, 5)
        expect(page.locator("[data-testid=resting]")).to_contain_text(
            "Your what-if and comparison rest until you close"
        )
        assert not {"what", "vs"} & place(page).keys(), "the panes show other numbers than the lesson"
        page.click("[data-testid=lesson-close]")
        expect(page.locator("[data-testid=what-if-reset]")).to_have_count(1)
        assert place(page) == {"u": "1", "what": "dapo", "vs": "dr_grpo"}
        page.click("[data-testid=learn]")
        expect(page.locator("[data-testid=what-if-reset]")).to_have_count(0)


def test_the_buttons_stay_and_so_does_what_a_beat_speaks_of(new_page: OpenPage) -> None:
    for width in (1440, 1024):
        page = new_page(**CALM, viewport={"width": width, "height": 768})
        with served(SMOLLM2) as url:
            open_at(page, url, update=1)
            heights = set()
            for beat in range(1, 8):
                go(page, beat)
                box = page.locator("[data-testid=lesson-next]").bounding_box()
                assert box
                heights.add(box["y"])
                panes = page.locator("[data-pane]:visible").evaluate_all("all => all.map(e => e.dataset.pane)")
                wanted = {6: "algorithm", 7: "training"}.get(beat, "step")
                assert wanted in panes and (width == 1440 or len(panes) == 2), f"beat {beat}: {panes}"
            assert len(heights) == 1, "the button wanders from beat to beat"


@pytest.mark.parametrize("width", [1440, 390])
def test_it_can_be_used_by_everybody(new_page: OpenPage, trained: Path, width: int) -> None:
    page = new_page(**CALM, viewport={"width": width, "height": 844})
    with served(trained) as url:
        open_at(page, url, update=7)
        page.evaluate(AXE.read_text(encoding="utf-8"))
        for beat, view in ((1, "step"), (5, "step"), (6, "algorithm"), (7, "training")):
            go(page, beat)
            if width == 390:
                expect(page.locator("main")).to_have_attribute("data-view", view)
                assert page.evaluate("document.documentElement.scrollWidth") <= 390
            faults = json.loads(
                page.evaluate(
                    "async () => JSON.stringify((await axe.run({include: ['[data-testid=lesson]']})).violations"
                    ".filter(v => ['serious', 'critical'].includes(v.impact))"
                    ".map(v => [v.id, v.nodes.map(n => n.html)]))"
                )
            )
            assert faults == [], f"beat {beat}"
        small = page.locator("[data-testid=lesson] .box button:visible, [data-testid=beats] button").evaluate_all(
            "all => all.map(e => e.getBoundingClientRect()).filter(b => b.height < 36).length"
        )
        terms = page.locator("[data-testid=lesson] .term button").count()
        assert width != 390 or small <= terms, "a button is too small for a finger"


def test_a_run_without_tokens_says_so(new_page: OpenPage, trained: Path, tmp_path: Path) -> None:
    import shutil

    bundle: Any = shutil.copytree(trained, tmp_path / "bare")
    (bundle / "index.r0.jsonl").write_text("")
    page = new_page(**CALM)
    with served(bundle) as url:
        page.goto(f"{url}#learn=3")
        lesson = page.locator("[data-testid=lesson]")
        expect(lesson).to_contain_text("were not captured, so there is nothing to walk through")
