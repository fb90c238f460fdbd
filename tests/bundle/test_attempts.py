"""What the reader shows of a run that was started several times."""

from __future__ import annotations

from pathlib import Path

from bundle.builder import Builder, attempt, response, token

from unipo_hooks.bundle.reader import open_bundle


def resumed(path: Path) -> Builder:
    """Attempt 0 did updates 0 to 3 on rollouts 0 and 1; attempt 1 resumed at update 3 with rollout 1 sampled anew.

    Rollout 1 of attempt 0 was used by updates 2 (still seen) and 3 (done again); rollout 2 of it by nothing.
    """
    built = Builder(path, attempts=[attempt(0, status="interrupted"), attempt(1, first_update=3)])
    for rollout in range(3):
        built.rollout(rollout, [response(0, [token(rollout)])], segment=rollout)
    for update in range(4):
        source = built.tables[f"r0-{update // 2:06d}", "rollout_tokens"][0]
        built.update(update, [(update // 2, response(0, [source]))], segment=update // 2)
        built.metrics(update, {"reward": [1.0, 1.0, 1.0]}, rollouts=[update // 2])
    built.log(3, {"grad_norm": 1.0})
    again = response(0, [token(100)], reward=1.0)
    built.rollout(1, [again], segment=10, attempt=1)
    built.update(3, [(1, again)], segment=10, attempt=1)
    built.metrics(3, {"reward": [2.0, 1.0, 4.0]}, attempt=1, rollouts=[1])
    return built


def test_what_a_later_attempt_did_again_is_hidden(tmp_path: Path):
    bundle = open_bundle(resumed(tmp_path).write())
    assert bundle.attempts()["first_update"].to_pylist() == [0, 3]
    updates = bundle.updates()
    assert list(zip(updates["update"].to_pylist(), updates["attempt"].to_pylist(), strict=True)) == [
        (0, 0), (1, 0), (2, 0), (3, 1),
    ]  # fmt: skip
    assert bundle.metrics()["reward"].to_pylist() == [1.0, 1.0, 1.0, 2.0]
    assert "grad_norm" not in bundle.metrics().column_names, "a hidden log is hidden too"
    assert bundle.tokens(update=3)["ids"].to_pylist() == [100]
    assert bundle.responses(update=3)["reward"].to_pylist() == [1.0]


def test_a_rollout_is_hidden_unless_an_update_that_is_seen_used_it(tmp_path: Path):
    bundle = open_bundle(resumed(tmp_path).write())
    rollouts = bundle.rollouts()
    assert list(zip(rollouts["rollout"].to_pylist(), rollouts["attempt"].to_pylist(), strict=True)) == [
        (0, 0), (1, 0), (1, 1),
    ]  # fmt: skip
    assert bundle.tokens(update=2)["ids"].to_pylist() == [1], "each update finds the rollout of its own attempt"
    assert bundle.tokens()["ids"].to_pylist() == [0, 1, 100]
    assert bundle.groups()["attempt"].to_pylist() == [0, 0, 1]


def test_an_update_that_was_not_captured_still_keeps_its_rollout(tmp_path: Path):
    built = Builder(tmp_path, attempts=[attempt(0), attempt(1, first_update=5)])
    built.rollout(0, [response(0, [token(1)])])
    built.metrics(2, {}, captured=False, rollouts=[0])
    assert open_bundle(built.write()).rollouts().num_rows == 1
    built.metric_lines[0].clear()
    assert open_bundle(built.write()).rollouts().num_rows == 0


def test_superseded_entries_can_be_shown(tmp_path: Path):
    bundle = open_bundle(resumed(tmp_path).write())
    updates = bundle.updates(superseded=True)
    assert updates["update"].to_pylist() == [0, 1, 2, 3, 3]
    assert updates["superseded"].to_pylist() == [False, False, False, True, False]
    assert bundle.rollouts(superseded=True)["superseded"].to_pylist() == [False, False, False, True]
    tokens = bundle.tokens(update=3, superseded=True)
    assert tokens["ids"].to_pylist() == [1, 100]
    assert tokens["superseded"].to_pylist() == [True, False]
    assert tokens["attempt"].to_pylist() == [0, 1]
    assert bundle.metrics(superseded=True)["superseded"].to_pylist() == [False, False, False, True, False]
    assert bundle.responses(superseded=True)["superseded"].to_pylist() == [False, False, False, True]
    assert bundle.groups(superseded=True)["superseded"].to_pylist() == [False, False, False, True]


def test_evaluations_are_hidden_from_the_step_at_which_training_was_done_again(tmp_path: Path):
    built = resumed(tmp_path)
    for number, step in enumerate((0, 3, 4)):
        rows = [response(0, [token(number)])]
        built.rollout(number, rows, kind="eval", segment=20, step=step)
        built.update(number, [(number, rows[0])], kind="eval", segment=20, step=step)
    bundle = open_bundle(built.write())
    assert bundle.updates(kind="eval")["step"].to_pylist() == [0, 3]
    assert bundle.tokens(kind="eval")["ids"].to_pylist() == [0, 1]


def test_a_start_from_the_beginning_hides_all_that_was(tmp_path: Path):
    built = resumed(tmp_path)
    built.manifest["attempts"].append(attempt(2, first_update=0))
    bundle = open_bundle(built.write())
    assert bundle.updates().num_rows == bundle.rollouts().num_rows == bundle.metrics().num_rows == 0
    assert bundle.updates(superseded=True).num_rows == 5
