"""Under every setting of TRL's loss and sampler, every channel is the trainer's own, bit for bit."""

import numpy as np
import pyarrow.parquet as pq
import pytest
from trl_channels import divided, held, same
from trl_settings import ALWAYS, SETTINGS, none_of_it, ran


@pytest.fixture(params=SETTINGS)
def captured(request, saved_model, tmp_path_factory):
    return SETTINGS[request.param], ran(request.param, saved_model, tmp_path_factory)


def rows_of(responses, rollouts):
    """Row of the rollout each response of a pass is, by what is stored."""
    assert responses["rollout"].nunique() == 1
    return rollouts[responses["rollout"].iloc[0]], responses["row"].tolist()


def test_every_channel_is_there_and_the_trainers_own_bit_for_bit(captured):
    setting, run = captured
    values: dict[str, list[np.ndarray]] = {}
    for kind in run.kinds:
        tokens, rollouts = run.tokens(kind), run.rollouts(kind)
        updates = run.bundle.updates(kind=kind).column("update").to_pylist()
        responses = run.bundle.responses(update=updates, kind=kind).to_pandas()
        by_response = dict(iter(tokens.groupby(["update", "micro_batch", "rollout", "row"])))
        seen = 0
        for update, number, each in run.passes(kind):
            mine = responses[(responses["update"] == update) & (responses["micro_batch"] == number)]
            rollout, rows = rows_of(mine, rollouts)
            theirs, ids = held(each, rollout, rows), each["inputs"]["completion_ids"].numpy()
            assert set(theirs) == {"advantages", "log_probs", "entropies", "old_log_probs"} | setting.has - {
                "mask_reason"
            }
            counted = each["local"].get("mask", each["inputs"]["completion_mask"]).numpy()
            assert len(mine) == len(ids)
            for i, (row, stored) in enumerate(zip(rows, mine.to_dict("records"), strict=True)):
                decoded = rollout["local"]["completion_ids_list"][row]
                n = len(decoded)
                at = by_response[update, number, stored["rollout"], row].sort_values("position")
                assert stored["length"] == n == len(at)
                assert at["ids"].tolist() == decoded == ids[i, :n].tolist()
                assert at["mask"].tolist() == counted[i, :n].tolist()
                assert stored["counted"] == stored["update_counted"] == counted[i].sum()
                cut_off = setting.settings.get("mask_truncated_completions", False) and not counted[i].any()
                if "mask_reason" in setting.has:
                    assert set(at["mask_reason"]) == {2 if cut_off else 0}
                for name, value in theirs.items():
                    expected = np.full(n, value[i], np.float32) if value.ndim == 1 else value[i, :n]
                    assert same(at[name].to_numpy(), expected), (name, update, number, row)
                    values.setdefault(name, []).append(expected)
                seen += 1
        assert seen == len(responses) == len(by_response)
    spread = {name: np.concatenate(each) for name, each in values.items()}
    print(f"{sum(map(len, spread.values()))} values of {len(spread)} channels are bit for bit the trainer's")
    flat = {name for name, each in spread.items() if np.nanmin(each) == np.nanmax(each)}
    assert flat == ({"advantages"} if setting.settings.get("rewards") == (none_of_it,) else set())
    moved = not same(spread["old_log_probs"], spread["log_probs"])
    assert moved is (
        ("old_log_probs" in setting.has and "num_iterations" in setting.settings) or apart(run.trainer.args)
    )
    assert "policy_mask" not in setting.has or set(spread["policy_mask"]) == {0.0, 1.0}


def test_rewards_and_groups_are_the_trainers(captured):
    setting, run = captured
    weights = setting.settings.get("reward_weights", [1.0] * len(run.bundle.manifest.reward_names))
    assert run.trainer.reward_weights.tolist() == pytest.approx(weights)
    for kind in run.kinds:
        stored = run.bundle.responses(kind=kind).to_pandas()
        for number, rollout in enumerate(run.rollouts(kind)):
            mine, local = stored[stored["rollout"] == number].sort_values("row"), rollout["local"]
            assert same(mine["reward"].to_numpy(), local["rewards"].numpy())
            assert same(mine["advantages"].to_numpy(), local["advantages"].numpy())
            components = [mine[f"reward_components.{k}"] for k in range(len(weights))]
            assert same(np.stack(components, 1), local["rewards_per_func"].numpy())
            size = local["num_generations"]
            assert mine["group"].tolist() == [row // size for row in range(len(mine))]
            assert mine.groupby("group")["prompt"].nunique().eq(1).all()
        assert len(stored) == sum(len(each["local"]["completion_ids_list"]) for each in run.rollouts(kind))


def test_the_manifest_lists_the_channels_there_are_and_no_others(captured):
    setting, run = captured
    assert set(run.bundle.manifest.channels) == ALWAYS | setting.has
    columns = {name for path in run.bundle.path.glob("segments/*.parquet") for name in pq.read_schema(path).names}
    assert setting.has <= columns
    named = {name.split(".")[0] for name in columns}
    assert named & (set(run.bundle.manifest.channels) | {"values", "returns"}) == ALWAYS | setting.has


def test_the_loss_recomputed_is_the_trainers_and_nothing_is_said(captured):
    setting, run = captured
    assert run.faults == []
    assert run.bundle.updates().column("update").to_pylist() == list(range(run.trainer.args.max_steps))
    of_responses = "cls" in setting.settings and "mask_reason" in setting.has
    assert len(run.bundle.manifest.algorithm_notes) == of_responses
    assert run.said == []
    worst = token = 0.0
    for kind in run.kinds:
        lines = run.bundle.updates(kind=kind).to_pylist()
        passes = [part for line in lines for part in line["micro_batches"]]
        assert [part["loss"] for part in passes] == pytest.approx(
            [each["loss"] / divided(run, kind) for _, _, each in run.passes(kind)], rel=1e-12, abs=0
        )
        assert all(part["loss_gap"] is not None for part in passes)
        worst = max(worst, *(abs(part["loss_gap"]) / part["loss_tolerance"] for part in passes))
        # A loss that is of whole responses has no loss of a token.
        assert {part["token_gap"] is None for part in passes} == {"cls" in setting.settings}
        token = max(token, *(part["token_gap"] or 0.0 for part in passes))
    print(f"largest gap {worst:.1e} of the tolerance, of a token {token:.1e}")
    assert worst <= 1
    assert token < 1e-5


def apart(args) -> bool:
    """Whether generations and updates are not aligned, so that responses are of an earlier policy."""
    return args.gradient_accumulation_steps % args.steps_per_generation != 0
