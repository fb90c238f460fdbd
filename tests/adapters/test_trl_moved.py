"""What moves in a trainer costs what hung on it, is said in one line, and the rest is captured as before."""

import gc
import inspect
import logging
import re

import pytest
import torch
import trl
import trl.trainer.grpo_trainer as grpo
from transformers import TrainerCallback
from trl import GRPOTrainer
from trl_runs import trainer_for

from unipo_hooks import UnipoCallback, open_bundle
from unipo_hooks.bundle.verify import verify
from unipo_hooks.record import CapturedRollout

OFF_POLICY = {"num_iterations": 2, "learning_rate": 5e-2, "max_steps": 4}


def renamed(*words):
    """GRPOTrainer as if TRL had renamed something in it: its own source, with other words."""
    source = inspect.getsource(GRPOTrainer)
    for old, new in words:
        source, found = re.subn(old, new, source)
        assert found, f"TRL {trl.__version__} has no {old}"
    space = dict(vars(grpo))
    exec(compile(source, "<renamed>", "exec"), space)  # noqa: S102
    return space["GRPOTrainer"]


@pytest.fixture
def run(saved_model, tmp_path, caplog):
    """Trains under a class of trainer: its bundle (None where there is none), and what was said."""

    def trained(cls, **settings):
        caplog.clear()
        folder = tmp_path / f"run{len(list(tmp_path.iterdir()))}"
        callback = UnipoCallback(folder)
        torch.manual_seed(3)
        with caplog.at_level(logging.WARNING, logger="unipo_hooks"):
            trainer = trainer_for(saved_model, tmp_path, callbacks=[callback], cls=cls, **OFF_POLICY | settings)
            trainer.train()
        assert trainer.state.global_step == OFF_POLICY["max_steps"]
        assert not any(record.exc_info for record in caplog.records), "a traceback says that it was not foreseen"
        if callback.path is None:
            return None, caplog.messages
        assert [str(fault) for fault in verify(callback.path)] == []
        return open_bundle(callback.path), caplog.messages

    return trained


def gaps(bundle):
    """The gap of every micro-batch in units of its tolerance; None where there was nothing to compare."""
    parts = [part for row in bundle.updates().to_pylist() for part in row["micro_batches"]]
    return [None if part["loss_gap"] is None else abs(part["loss_gap"]) / part["loss_tolerance"] for part in parts]


def same(bundle, other, names):
    """Whether channels hold the same in two runs."""
    tables = [
        each.tokens(update=number).select([name for name in names if name in each.tokens(update=number).column_names])
        for number in range(OFF_POLICY["max_steps"])
        for each in (bundle, other)
    ]
    return all(mine.equals(theirs) for mine, theirs in zip(tables[::2], tables[1::2], strict=True))


LOG_PROBS = (r"\b_get_per_token_logps_and_entropies\b", "_token_log_probs")
REWARDS = (r"\b_calculate_rewards\b", "_score")
COSTS_NOTHING = {
    "the method that scores": ([REWARDS], {}),
    "the method that gives log-probs": ([LOG_PROBS], {"beta": 0.05}),
    "the method of the entropy mask": ([(r"\bget_high_entropy_mask\b", "mask_of")], {"top_entropy_quantile": 0.5}),
    "the local with log-probs": ([(r"\bper_token_logps\b", "now")], {}),
    "the local with entropies": ([(r"\bentropies\b", "spread")], {}),
    "the size of groups": ([(r"\bself\.num_generations\b", "self.group")], {}),
    "the weights of rewards": ([(r"\bself\.reward_weights\b", "self.weights")], {"reward_weights": [2.0, 0.5]}),
}


@pytest.mark.parametrize("name", COSTS_NOTHING)
def test_what_is_known_from_elsewhere_costs_nothing(run, name):
    words, settings = COSTS_NOTHING[name]
    plain, _ = run(GRPOTrainer, **settings)
    bundle, said = run(renamed(*words), **settings)
    assert said == []
    assert bundle.manifest.channels == plain.manifest.channels
    assert same(bundle, plain, bundle.manifest.channels)
    assert bundle.responses(rollout=0).equals(plain.responses(rollout=0))
    print(f"largest gap {max(gaps(bundle)):.1%} of the tolerance")
    assert max(gaps(bundle)) <= 1


COSTS_CHANNELS = {
    # what is named otherwise → settings, the line that says so, channels lost, whether the loss is still compared
    "rewards and the table of completions": ([REWARDS, (r"\b_logs\b", "_table")], {}, "rewards", set(), True),
    "the penalty": ([(r"\bper_token_kl\b", "penalty")], {"beta": 0.05}, "token_kl", {"token_kl"}, True),
    "the entropy mask": (
        [(r"\bentropy_mask\b", "chosen")],
        {"top_entropy_quantile": 0.5},
        "policy_mask",
        {"policy_mask"},
        True,
    ),
    "the key of the mask": ([('"completion_mask"', '"attended"')], {}, "mask", set(), True),
    "the key of advantages": ([('"advantages"', '"signal"')], {}, "advantages", {"advantages"}, False),
    "the key of old log-probs": (
        [('"old_per_token_logps"', '"before"')],
        {},
        "old_log_probs",
        {"old_log_probs"},
        False,
    ),
}


@pytest.mark.parametrize("name", COSTS_CHANNELS)
def test_what_is_not_known_from_elsewhere_costs_its_channel_and_is_said_in_a_line(run, name):
    words, settings, line, lost, compared = COSTS_CHANNELS[name]
    plain, _ = run(GRPOTrainer, **settings)
    bundle, said = run(renamed(*words), **settings)
    kept = [each for each in plain.manifest.channels if each not in lost]
    assert bundle.manifest.channels == kept
    assert lost <= set(plain.manifest.channels)
    assert len(bundle.updates()) == OFF_POLICY["max_steps"]
    assert same(bundle, plain, [each for each in kept if not each.startswith("reward")])
    assert [each for each in said if "not captured" in each] == [each for each in said if f"captured: {line}:" in each]
    assert len(said) == (1 if compared else 2)
    if compared:
        print(f"largest gap {max(gaps(bundle)):.1%} of the tolerance")
        assert max(gaps(bundle)) <= 1
    else:
        assert set(gaps(bundle)) == {None}
        assert "the loss cannot be recomputed" in said[-1]


def test_rewards_that_cannot_be_read_are_missing_and_never_zero(run):
    bundle, _ = run(renamed(REWARDS, (r"\b_logs\b", "_table")))
    rewards = bundle.responses(rollout=0).column("reward").to_pylist()
    assert len(rewards) == 8 and all(reward is None or reward != reward for reward in rewards)


@pytest.mark.parametrize("name", ["_generate_and_score_completions", "_compute_loss"])
def test_a_method_on_which_everything_hangs_is_named_with_the_versions_that_were_verified(run, name):
    bundle, said = run(renamed((rf"\b{name}\b", "_other")))
    assert bundle is None
    assert said == [
        f"unipo-hooks: capture is off: GRPOTrainer of TRL {trl.__version__} has no {name}; "
        "capture was verified with TRL 0.17 to 1.16. Training goes on."
    ]


@pytest.mark.parametrize("key", ["completion_ids", "prompt_mask"])
def test_a_batch_that_is_no_rollout_any_more_is_said_in_one_line(run, key):
    _, said = run(renamed((f'"{key}"', '"other"')))
    why = f"the generation batch of GRPOTrainer has no {key}"
    assert said[0] == f"unipo-hooks: capture is off: {why}. Training goes on."
    assert len(said) == 2 and "4 updates and 2 rollouts are not in" in said[1] and said[1].endswith(why)


def without_updates(run, cls, why, **settings):
    """Where no log-probs are found: rollouts are whole, updates are counted, and one line says why."""
    plain, _ = run(GRPOTrainer, **settings)
    bundle, said = run(cls, **settings)
    assert len(bundle.updates()) == 0
    assert bundle.manifest.lost.updates == OFF_POLICY["max_steps"]
    assert bundle.rollouts().column("rollout").to_pylist() == [0, 1]
    for column in ("prompt", "reward", "advantages", "reward_component_0"):
        if column in plain.responses(rollout=0).column_names:
            mine, theirs = (each.responses(rollout=0).column(column) for each in (bundle, plain))
            assert mine.equals(theirs)
    assert {"ids", "reward", "advantages", "old_log_probs"} <= set(bundle.manifest.channels)
    assert why in said[0] and "rollouts are" in said[0]
    assert len(said) == 2 and f"{OFF_POLICY['max_steps']} updates are not in" in said[1]


class Unsloth(GRPOTrainer):
    """As Unsloth's patched trainer: its log-prob method gives None in the loss, which computes log-probs elsewhere."""

    def _get_per_token_logps_and_entropies(self, *args, **kwargs):
        if self.in_loss:
            return None
        return super()._get_per_token_logps_and_entropies(*args, **kwargs)

    in_loss = False

    def _compute_loss(self, model, inputs):
        ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], 1)
        self.in_loss = True
        assert self._get_per_token_logps_and_entropies(model, ids, None, 5) is None
        self.in_loss = False
        logits = model(input_ids=ids).logits[:, -inputs["completion_ids"].shape[1] - 1 : -1]
        each = logits.log_softmax(-1).gather(-1, inputs["completion_ids"].unsqueeze(-1))
        return -(each.squeeze(-1) * inputs["advantages"].unsqueeze(1) * inputs["completion_mask"]).mean()


def test_log_probs_that_are_none_cost_the_updates_and_not_the_rollouts(run):
    without_updates(run, Unsloth, "holds no log-probs")


class Fused(GRPOTrainer):
    """As TRL up to 1.13 with Liger's fused loss, which is computed in another method and shows no log-probs."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        return self.compute_liger_loss(model, inputs)

    def compute_liger_loss(self, unwrapped_model, inputs):
        return super()._compute_loss(unwrapped_model, inputs)


def test_ligers_fused_loss_costs_the_updates_and_not_the_rollouts(run):
    without_updates(run, Fused, "Liger's fused loss")


def test_log_probs_that_moved_altogether_cost_the_updates_and_not_the_rollouts(run):
    both = renamed(LOG_PROBS, (r"\bper_token_logps\b", "now"))
    bundle, said = run(both)
    assert len(bundle.updates()) == 0 and len(bundle.rollouts()) == 2
    assert "rollouts are: _compute_loss holds no log-probs" in said[0] and len(said) == 2


@pytest.mark.parametrize("version", ["0.16.1", "1.17.0", "2.0.0"])
def test_another_version_is_told_which_were_verified_and_is_captured(run, monkeypatch, version):
    monkeypatch.setattr(trl, "__version__", version)
    bundle, said = run(GRPOTrainer)
    assert said[0] == (
        f"unipo-hooks: capture was verified with TRL 0.17 to 1.16, this is {version}: what it computes is compared "
        "with what is captured as it runs"
    )
    assert len(bundle.updates()) == OFF_POLICY["max_steps"]
    assert "log_probs" in bundle.manifest.channels
    if version != "0.16.1":  # its loss is of another kind, which is said as a gap
        assert len(said) == 1
        assert max(gaps(bundle)) <= 1


def test_rollouts_whose_updates_are_lost_are_let_go_of(saved_model, tmp_path):
    callback, alive = UnipoCallback(tmp_path / "run"), []

    class Counting(TrainerCallback):
        def on_step_end(self, args, state, control, **_):
            callback._recorder.flush()
            alive.append(sum(isinstance(each, CapturedRollout) for each in gc.get_objects()))

    trainer_for(saved_model, tmp_path, callbacks=[callback, Counting()], cls=Fused, max_steps=8).train()
    print(f"rollouts in memory after each of {len(alive)} updates: {alive}")
    assert len(alive) == 8 and max(alive) <= 2
