"""The Step Inspector on runs that were really trained: what its colours and numbers say, what a person does there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from playwright.sync_api import Locator, Page, expect
from records import handing_over, rollout, run_info, update, without
from viewer.conftest import OpenPage
from viewer.pages import SMOLLM2, assert_shows, card, colours, open_group, open_update, ready, served, text_of, written

from unipo_hooks import Recorder, algorithms, evaluate, open_bundle

STEP = "[data-pane=step]"


def pushes(bundle: Path, update: int) -> dict[int, dict[str, Any]]:
    """What Python makes of each response of an update, by row: push, objective, codes of clipping, advantages."""
    opened, found = open_bundle(bundle), {}
    algorithm = opened.manifest.attempt(0).algorithm
    assert algorithm is not None
    for micro_batch in opened.micro_batches(update):
        result = evaluate(algorithm, micro_batch.batch)
        for i, row in enumerate(micro_batch.row_B):
            n = int(micro_batch.length_B[i])
            found[int(row)] = {
                "push": -result.gradient_weight[i, :n],
                "objective": result.token_objective[i, :n],
                "clipped": result.clipped[i, :n],
                "advantage": result.advantages[i, :n],
            }
    return found


def number(text: str) -> float:
    return float(text.replace("−", "-").removesuffix("nats").strip())


def row_of(response: Locator) -> int:
    return int((response.get_attribute("data-row") or "").split(".")[1])


def marked(page: Page, mark: str) -> int:
    return page.locator(f"{STEP} .tok[data-m~='{mark}']").count()


@pytest.mark.parametrize("real", ["smollm2", "digits"])
def test_push_objective_and_clipping_are_those_that_python_computes(
    new_page: OpenPage, request: pytest.FixtureRequest, real: str
) -> None:
    path = SMOLLM2 if real == "smollm2" else request.getfixturevalue("trained")
    update = 3 if real == "smollm2" else 29
    python = pushes(path, update)
    page, errors, marks = new_page(), [], 0
    painted: list[tuple[float, int]] = []
    with served(path) as url:
        page.goto(f"{url}#u={update}")
        ready(page)
        expect(page.locator("[data-testid=channel-switch] [aria-checked=true]")).to_have_text("Push")
        for response in page.locator("[data-testid=response]").all():
            mine = python[row_of(response)]
            response.scroll_into_view_if_needed()
            spans = response.locator(".tok")
            expect(spans).to_have_count(len(mine["push"]))
            shown = spans.evaluate_all("tokens => tokens.map(t => [t.className.slice(4), t.dataset.m ?? ''])")
            for i, (colour, mark) in enumerate(shown):
                silent, capped = 0 < mine["clipped"][i] <= 5, mine["clipped"][i] > 5
                assert ("c" in mark, "k" in mark) == (silent, capped)
                marks += silent or capped
                painted.append((mine["push"][i], int(colour[1:]) - 5))
            for i in (0, len(mine["push"]) // 2, *np.flatnonzero(mine["clipped"])[:1]):
                spans.nth(int(i)).hover()
                numbers = card(page)
                for name, value in (("push", mine["push"][i]), ("token_objective", mine["objective"][i])):
                    assert_shows(numbers[name], float(value))
                    errors.append(abs(number(numbers[name]) - value) / max(abs(value), 1e-12))
                words = text_of(page.locator("[data-testid=token-card] .verdict"))
                assert words.startswith("Clipped: ") == bool(mine["clipped"][i])
    values, steps = np.array(painted).T
    assert (np.diff(steps[np.argsort(values)]) >= 0).all(), "a larger push is never painted less likely"
    assert (steps * values >= 0).all() and steps.min() < 0 < steps.max(), "blue is more likely"
    print(
        f"{real}: {len(errors)} numbers, {marks} clipped tokens, largest relative difference as shown {max(errors):.1e}"
    )
    assert marks > 0


def test_the_scale_is_that_of_the_group_of_the_update_or_locked(new_page: OpenPage) -> None:
    page = new_page()
    with served(SMOLLM2) as url:
        page.goto(f"{url}#u=3&ch=log_ratio")
        ready(page)
        top = page.locator("[data-testid=scale-max]")
        group = top.inner_text()
        page.select_option("[data-testid=scale-over]", "update")
        tokens = open_bundle(SMOLLM2).tokens(update=3).to_pandas()
        tokens = tokens[tokens["mask"] == 1]
        ratios = np.sort(np.abs(tokens["log_probs"].astype(np.float32) - tokens["old_log_probs"].astype(np.float32)))
        assert_shows(top.inner_text().removeprefix("≥ "), float(ratios[int(np.ceil(0.96 * len(ratios))) - 1]))
        page.select_option("[data-testid=scale-over]", "run")
        locked = top.inner_text().removeprefix("≥ ")
        assert "over=run" in page.evaluate("location.hash") and "reach=" in page.evaluate("location.hash")
        open_update(page, 5)
        assert top.inner_text().removeprefix("≥ ") == locked
        page.select_option("[data-testid=scale-over]", "group")
        assert top.inner_text().removeprefix("≥ ") != group


def test_a_group_whose_rewards_are_equal_says_so_and_is_not_painted(new_page: OpenPage) -> None:
    page = new_page()
    with served(SMOLLM2) as url:
        page.goto(f"{url}#u=3")
        ready(page)
        page.locator("[data-testid=group-card]", has=page.locator("[data-testid=no-signal]")).first.click()
        expect(page.locator("[data-testid=flat]")).to_contain_text("No signal. Every sibling scored the same")
        expect(page.locator("[data-testid=flat]")).to_contain_text("Only a constraint still pushes")
        for channel in ("push", "token_objective", "advantages"):
            page.click(f"[data-channel={channel}]")
            expect(page.locator(f"{STEP} .tok:not(.none, .mask)")).to_have_count(0)
        page.click("[data-channel=entropies]")
        expect(page.locator(f"{STEP} .tok.s3").first).to_be_visible()


def test_values_relative_to_the_response_have_mean_0(new_page: OpenPage) -> None:
    page = new_page()
    with served(SMOLLM2) as url:
        page.goto(f"{url}#u=3&ch=entropies")
        ready(page)
        page.click("[data-testid=relative]")
        expect(page.locator("[data-testid=relative-note]")).to_be_visible()
        assert "below its response's mean" in text_of(page.locator("[data-testid=legend]"))
        tokens = open_bundle(SMOLLM2).tokens(update=3).to_pandas()
        for response in page.locator("[data-testid=response]").all()[:2]:
            mine = tokens[tokens["row"] == row_of(response)].sort_values("position")
            response.scroll_into_view_if_needed()
            classes = response.locator(".tok").evaluate_all("tokens => tokens.map(t => Number(t.className.slice(5)))")
            away = (mine["entropies"] - mine["entropies"][mine["mask"] == 1].mean()).to_numpy()
            steps = np.array(classes) - 5
            assert ((steps > 0) <= (away > 0)).all() and ((steps < 0) <= (away < 0)).all() and (steps != 0).any()


def test_responses_are_sorted_and_filtered(new_page: OpenPage) -> None:
    python = pushes(SMOLLM2, 3)
    page = new_page()
    with served(SMOLLM2) as url:
        page.goto(f"{url}#u=3")
        ready(page)

        def rows() -> list[int]:
            return [row_of(row) for row in page.locator("[data-testid=response]").all()]

        best = rows()
        page.select_option("[data-testid=sort]", "order")
        assert rows() == sorted(best)
        page.select_option("[data-testid=sort]", "push")
        totals = [float(python[row]["push"].sum()) for row in rows()]
        assert totals == sorted(totals, reverse=True) and rows() != best
        page.select_option("[data-testid=filter]", "negative")
        assert {row for row in best if python[row]["advantage"][0] < 0} == set(rows()) != set()
        page.select_option("[data-testid=filter]", "trained")
        page.reload()  # it is all in the link
        ready(page)
        assert (
            page.input_value("[data-testid=sort]") == "push" and page.input_value("[data-testid=filter]") == "trained"
        )


def test_text_is_found_and_questions_pick_tokens(new_page: OpenPage) -> None:
    python = pushes(SMOLLM2, 3)
    page = new_page()
    with served(SMOLLM2) as url:
        page.goto(f"{url}#u=3")
        ready(page)
        texts = [
            "".join(t)
            for t in (row.locator(".tok").all_text_contents() for row in page.locator("[data-testid=response]").all())
        ]
        occurrences = sum(len(re.findall("the answer", text, re.I)) for text in texts)
        page.keyboard.press("/")
        page.keyboard.type("the ANSWER")
        expect(page.locator("[data-testid=find-count]")).to_have_text(f"–/{occurrences}")
        for width in (1440, 1280, 1024):
            page.set_viewport_size({"width": width, "height": 800})
            box = page.locator("[data-testid=find]").bounding_box()
            assert box and box["width"] >= 60, f"what is typed cannot be read at {width}"
        page.keyboard.press("Enter")
        page.keyboard.press("Enter")
        expect(page.locator("[data-testid=find-count]")).to_have_text(f"2/{occurrences}")
        page.keyboard.press("Shift+Enter")
        expect(page.locator("[data-testid=find-count]")).to_have_text(f"1/{occurrences}")
        expect(page.locator(f"{STEP} .tok[data-selected]")).to_be_in_viewport()
        assert marked(page, "f") >= 2 * occurrences
        page.keyboard.press("Escape")
        expect(page.locator(f"{STEP} .tok[data-m~=f]")).to_have_count(0)

        rows = [row_of(row) for row in page.locator("[data-testid=response]").all()]
        wanted = sum(int(((python[r]["clipped"] > 0) & (python[r]["advantage"] < 0)).sum()) for r in rows)
        page.select_option("[data-testid=query]", label="clipped and A < 0")
        total = sum(len(python[r]["push"]) for r in rows)
        expect(page.locator("[data-testid=picked]")).to_contain_text(f"{wanted} of {total} tokens picked")
        page.locator(f"{STEP} .foot").scroll_into_view_if_needed()
        expect(page.locator(f"{STEP} .tok[data-m~=o]")).to_have_count(total - wanted)
        assert "brush=clipped_negative" in page.evaluate("location.hash")


def test_a_range_of_a_distribution_picks_tokens_by_pointer_and_by_keyboard(new_page: OpenPage) -> None:
    page = new_page()
    with served(SMOLLM2) as url:
        page.goto(f"{url}#u=3")
        ready(page)
        page.click("[data-testid=strips-toggle]")
        plot = page.locator("[data-strip=entropies] .plot")
        box = plot.bounding_box()
        assert box
        page.mouse.move(box["x"] + box["width"] / 2, box["y"] + 9)
        page.mouse.down()
        page.mouse.move(box["x"] + box["width"] + 30, box["y"] + 9, steps=4)
        page.mouse.up()
        _, low, high = page.evaluate("new URLSearchParams(location.hash.slice(1)).get('brush').split(';')")
        assert high == "Infinity"
        group = page.locator("[data-testid=group-card][aria-pressed=true]").get_attribute("data-group") or ""
        tokens = open_bundle(SMOLLM2).tokens(update=3).to_pandas()
        mine = tokens[(tokens["group"] == int(group.split(".")[1])) & (tokens["mask"] == 1)]
        picked = page.locator("[data-testid=picked]")
        expect(picked).to_contain_text(f"{int((mine['entropies'] >= float(low)).sum())} of")
        before = text_of(picked)
        page.locator("[data-strip=entropies] [role=slider]").first.press("Shift+ArrowRight")
        expect(picked).not_to_have_text(before)
        page.keyboard.press("Escape")
        expect(picked).to_have_count(0)
        expect(page.locator(f"{STEP} .tok[data-m~=o]")).to_have_count(0)


def test_only_the_open_update_is_read_until_a_response_is_followed_to_its_other_updates(
    new_page: OpenPage, spread: Path
) -> None:
    bundle = open_bundle(spread)
    page = new_page()
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    with served(spread) as url:
        page.goto(f"{url}#u=2")
        ready(page)
        page.wait_for_load_state("networkidle")
        assert len({re.sub(r"\..*", "", name.rsplit("/", 1)[1]) for name in asked if "/segments/" in name}) == 1
        response = page.locator("[data-testid=response]:not(.out)").first
        number_of = row_of(response)
        response.locator(".tok").nth(1).click()
        uses = page.locator("[data-testid=elsewhere] button")
        updates = [u for u in range(4) if number_of in bundle.responses(update=u).column("row").to_pylist()]
        expect(uses).to_have_count(len(updates))
        assert len(updates) == 2
        for use, update in zip(uses.all(), updates, strict=True):
            rows = bundle.responses(update=update).to_pandas().set_index("row").loc[number_of]
            shown = re.search(r"log-ratio (\S+) a token", text_of(use))
            assert shown
            assert_shows(shown[1], float(rows["log_ratio_sum"] / rows["counted"]))
        uses.first.click()
        expect(page.locator("[data-testid=update-box]")).to_have_value(str(updates[0]))
        expect(page.locator(f"{STEP} .toks[data-pass='0.{number_of}'] .tok[data-i='1']")).to_have_attribute(
            "data-selected", ""
        )
        expect(page.locator("[data-testid=elsewhere] [aria-current]")).to_contain_text("% clipped")


def test_a_what_if_recolours_and_marks_what_it_changes(new_page: OpenPage) -> None:
    page = new_page()
    with served(SMOLLM2) as url:
        page.goto(f"{url}#u=3")
        ready(page)
        before, clipped = colours(page), marked(page, "c")
        assert clipped and not marked(page, "w")
        page.goto(f"{url}#u=3&what=grpo;bounds.epsilon_low=1000;bounds.epsilon_high=1000")
        expect(page.locator("[data-testid=changed-key]")).to_be_visible()
        assert marked(page, "w") >= clipped and marked(page, "c") == 0
        assert colours(page) != before
        page.select_option("[data-testid=filter]", "changed")
        assert page.locator("[data-testid=response]").count() >= 1


def test_rendered_text_is_maths_and_markdown_and_nothing_else(new_page: OpenPage, tmp_path: Path) -> None:
    texts = [
        "# Sum\n", "So **b** and `c` and $x_1^2$", " and \\(\\frac{1}{2}\\)\n", "\\[ a = b \\]\n", "- one\n",
        "$\\href{javascript:alert(1)}{x}$", "<script>window.pwned = 1</script>", "[l](javascript:alert(2)) ![i](x.png)",
        "$\\def\\a{\\a\\a}\\a$", "\u202eright to left", "<img src=x onerror=alert(3)>",
    ]  # fmt: skip
    n = len(texts)
    bundle = written(
        tmp_path / "run",
        info={"decode": lambda ids: "".join(texts[i] for i in ids)},
        rows=4,
        width=n,
        length_B=np.full(4, n),
        mask_BT=np.ones((4, n)),
        ids_BT=np.tile(np.arange(n), (4, 1)),
    )
    page = new_page()
    with served(bundle) as url:
        page.goto(url)
        ready(page)
        page.click("[data-testid=rendered]")
        text = page.locator("[data-testid=rendered-text]").first
        expect(text.locator(".h1")).to_have_text("Sum")
        expect(text.locator("b")).to_have_text("b")
        expect(text.locator("code")).to_have_text("c")
        assert text.locator("math").count() == 3 and text.locator("math mfrac").count() == 1
        assert text.locator(".li").count() == 1 and text.locator(".display").count() == 1
        assert "<script>window.pwned = 1</script>" in (text.text_content() or "")
        assert page.locator("#app :is(script, img, a[href])").count() == 0
        assert page.evaluate("window.pwned") is None
        assert text.locator(".tint:is([class*=' d'], [class*=' s'])").count() > 3
        page.click("[data-testid=raw]")
        expect(page.locator(f"{STEP} .tok").first).to_have_text("# Sum\n")


def test_groups_channels_and_letting_go_by_keyboard(new_page: OpenPage) -> None:
    page = new_page(viewport={"width": 1280, "height": 720})
    with served(SMOLLM2) as url:
        page.goto(f"{url}#u=3")
        ready(page)
        current = page.locator("[data-testid=group-card][aria-pressed=true]")
        first = current.get_attribute("data-group")
        page.keyboard.press("g")
        expect(current).not_to_have_attribute("data-group", first or "")
        page.keyboard.press("3")
        expect(page.locator("[data-testid=channel-switch] [aria-checked=true]")).to_have_text("Log-ratio")
        page.click("[data-testid=more-channels]")
        page.click("[role=menuitemradio][data-channel=ref_log_probs]")
        expect(page.locator("[data-testid=more-channels]")).to_contain_text("Reference log-prob")
        page.select_option("[data-testid=query]", label="entropy > 1")
        page.locator(f"{STEP} .tok").first.click()
        page.mouse.move(5, 300)
        page.locator("body").press("Escape")
        expect(page.locator("[data-testid=picked]")).to_have_count(0)
        expect(page.locator(f"{STEP} .tok[data-selected]")).to_have_count(1)
        page.keyboard.press("Escape")
        expect(page.locator(f"{STEP} .tok[data-selected]")).to_have_count(0)
        stops = page.locator(f"{STEP} :is(button, select, input, summary, [tabindex]):visible").evaluate_all(
            "all => all.filter(e => e.tabIndex >= 0 && !e.disabled).length"
        )
        assert stops < 24


def test_on_a_phone_a_tap_fills_the_bar_and_why_opens_the_algorithm(new_page: OpenPage) -> None:
    page = new_page(viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True)
    with served(SMOLLM2) as url:
        page.goto(f"{url}#u=3")
        ready(page)
        page.locator(f"{STEP} .tok").nth(4).tap()
        bar = page.locator("[data-testid=token-card]")
        box, tabs = bar.bounding_box(), page.locator("nav.tabs").bounding_box()
        assert box and tabs and abs(box["y"] + box["height"] - tabs["y"]) < 3
        assert "push" in text_of(bar)
        small = page.locator(f"{STEP} :is(button, select, input):visible").evaluate_all(
            "all => all.map(e => [e.getBoundingClientRect().height, e.outerHTML.slice(0, 90)]).filter(([h]) => h < 35)"
        )
        assert small == []
        bar.get_by_role("button", name="Why").click()
        expect(page.locator("[data-pane=algorithm]")).to_be_visible()


def test_a_first_arrow_key_picks_the_token_that_is_pushed_hardest(new_page: OpenPage) -> None:
    python = pushes(SMOLLM2, 3)
    page = new_page()
    with served(SMOLLM2) as url:
        page.goto(f"{url}#u=3")
        ready(page)
        rows = [row_of(row) for row in page.locator("[data-testid=response]").all()]
        page.keyboard.press("ArrowRight")
        page.wait_for_function("() => location.hash.includes('&t=')")
        row, token = page.evaluate(
            """(() => {
              const place = new URLSearchParams(location.hash.slice(1));
              return [place.get("r").split(".")[1], place.get("t")];
            })()"""
        )
        hardest = max(float(np.abs(python[r]["push"]).max()) for r in rows)
        assert abs(python[int(row)]["push"][int(token)]) == pytest.approx(hardest)


def test_under_a_what_if_colours_keep_the_scale_of_the_run(new_page: OpenPage) -> None:
    page = new_page()
    with served(SMOLLM2) as url:
        page.goto(f"{url}#u=0")
        ready(page)
        ends = [page.inner_text(f"[data-testid=scale-{end}]") for end in ("min", "max")]
        full = [colour for colour in colours(page) if colour in ("d0", "d10")]
        page.evaluate("location.hash = '#u=0&what=dr_grpo'")
        expect(page.locator("[data-testid=kept-scale]")).to_be_visible()
        kept = [page.inner_text(f"[data-testid=scale-{end}]") for end in ("min", "max")]
        assert [end.strip("≤≥ ") for end in kept] == [end.strip("≤≥ ") for end in ends]
        assert full and not [colour for colour in colours(page) if colour in ("d0", "d10")], "weaker pushes look weaker"


def test_picked_tokens_are_counted_over_the_update_and_stepped_through(new_page: OpenPage) -> None:
    python = pushes(SMOLLM2, 3)
    wanted = sum(int(((each["clipped"] > 0) & (each["advantage"] < 0)).sum()) for each in python.values())
    page = new_page()
    with served(SMOLLM2) as url:
        page.goto(f"{url}#u=3&brush=clipped_negative;1;1")
        ready(page)
        counts = page.locator("[data-testid=group-picked]").all_inner_texts()
        assert sum(int(re.sub(r"\D", "", text)) for text in counts) == wanted > 0
        here = int(re.findall(r"\d+", page.inner_text("[data-testid=picked]"))[0])
        expect(page.locator("[data-testid=find-count]")).to_have_text(f"–/{here}" if here else "none")
        page.locator("[data-testid=group-card]", has=page.locator("[data-testid=group-picked]")).first.click()
        page.click("[aria-label='Next match']")
        expect(page.locator(f"{STEP} .tok[data-selected][data-m~=c]")).to_have_count(1)


def test_on_a_phone_the_first_token_is_in_the_upper_half(new_page: OpenPage) -> None:
    page = new_page(viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True)
    with served(SMOLLM2) as url:
        page.goto(f"{url}#u=3&view=step")
        ready(page)
        box = page.locator(f"{STEP} .tok").first.bounding_box()
        assert box and box["y"] < 480
        expect(page.locator("[data-testid=sort]")).to_be_hidden()
        page.click("[data-testid=unfold]")
        page.select_option("[data-testid=sort]", "order")
        page.click("[data-testid=rendered]")
        expect(page.locator("[data-testid=rendered-text]").first).to_be_visible()


def test_what_a_trainer_says_of_a_response_stands_with_it_and_of_all_of_them_once(
    new_page: OpenPage, tmp_path: Path
) -> None:
    labels = {
        "uid": [f"prompt-{row // 4}" for row in range(8)],
        "max_global_steps": [*range(7), None],
        "<i>said</i>": ["x" * 1000] * 8,
    }
    page = new_page()
    with served(written(tmp_path / "run", updates=1, labels=labels)) as url:
        page.goto(url)
        for group in (0, 1):
            open_group(page, 0, group)
            shared = page.locator("[data-testid=labels]").first
            expect(shared).to_contain_text(f"prompt-{group}")
            assert text_of(shared) == f"uid prompt-{group} <i>said</i> {'x' * 23}…"
            for response in page.locator("[data-testid=response]").all():
                row = row_of(response)
                own = response.locator("[data-testid=labels]")
                expect(own).to_have_text([] if row == 7 else [f"max_global_steps {row}"])
            expect(page.locator("[data-testid=labels] i")).to_have_count(0)


def test_a_group_that_never_left_its_worker_has_its_rewards_and_says_what_is_not_there(
    new_page: OpenPage, tmp_path: Path
) -> None:
    spec = algorithms.get("grpo.trl")
    of, run = rollout(labels={"uid": [f"prompt-{row // 4}" for row in range(8)]}), run_info(algorithm=spec)
    recorder = Recorder(tmp_path / "run", run, strict=True)
    recorder.rollout(without(of, (0,)))
    recorder.update(handing_over(update(0, of, micro_batches=2), of, (0,), run))
    recorder.close()
    page = new_page()
    with served(recorder.path) as url:
        page.goto(url)
        ready(page)
        gone = page.locator("[data-testid=group-card][data-group='0.1']")
        expect(gone).to_contain_text("(prompt not kept)")
        gone.click()
        responses = page.locator("[data-testid=response]")
        expect(responses).to_have_count(4)
        expect(page.locator(STEP)).to_contain_text("The prompt was not kept.")
        expect(page.locator(f"{STEP} [data-testid=labels]").first).to_have_text("uid prompt-1")
        for response in responses.all():
            expect(response).to_contain_text("Tokens not kept.")
            assert_shows(text_of(response.get_by_test_id("reward")), float(of.reward_B[row_of(response)]))
