"""What a user sets under `unipo`, and what verl's own configuration says of a run."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

# A module inside verl: `verl` alone would be found wherever this folder's parent is on the path.
pytest.importorskip("verl.trainer.ppo", reason="needs verl: make test runs it in .venv-verl")

from omegaconf import OmegaConf
from verl.trainer.ppo.core_algos import AdvantageEstimator

from unipo_hooks.adapters.verl import settings
from unipo_hooks.adapters.verl.settings import Plan, Settings, component_keys, estimator_of, rejects, run_info
from unipo_hooks.errors import PolicyError
from verl_cpu.pieces import Characters, composed, info

SECRET = "hunter2-of-the-test"


def given(*overrides: str):
    return Settings(OmegaConf.from_dotlist([each.lstrip("+") for each in overrides]).unipo)


# --- what is set under `unipo` ---


def test_a_path_is_enough():
    found = given("+unipo.path=runs/gsm8k")
    assert found.path.is_absolute() and found.path.parts[-2:] == ("runs", "gsm8k")
    assert (found.strict, found.on_full, found.policy.every) == (False, "drop", 1)


def test_every_setting_of_the_policy_is_understood():
    found = given(
        *("+unipo.path=x", "+unipo.every=3", "+unipo.max_groups=2", "+unipo.max_bytes=1000", "+unipo.seed=7"),
        *("+unipo.strict=true", "+unipo.on_full=block"),
    )
    assert found.policy.model_dump() == {"every": 3, "max_groups": 2, "max_bytes": 1000, "seed": 7}
    assert (found.strict, found.on_full) == (True, "block")


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (("+unipo.path=x", "+unipo.every_=3"), ["every_", "did you mean every"]),
        (("+unipo.path=x", "+unipo.max_group=3"), ["max_group", "did you mean max_groups"]),
        (("+unipo.path=x", "+unipo.every=0"), ["every=0"]),
        (("+unipo.path=x", "+unipo.every=often"), ["every='often'"]),
        (("+unipo.path=x", "+unipo.on_full=stop"), ["on_full", "'stop'"]),
        (("+unipo.every=3",), ["unipo.path is missing", "+unipo.path="]),
        (("+unipo.path=",), ["unipo.path is missing"]),
        (("+unipo.path=null",), ["unipo.path is missing"]),
        (("+unipo.path=3",), ["unipo.path is missing"]),
        (("+unipo.path=s3://bucket/x",), ["s3://bucket/x is an address"]),
        (("+unipo.path=x", "+unipo.strict=no-thanks"), ["unipo.strict", "'no-thanks'"]),
        (("+unipo=foo",), ["unipo='foo'", "+unipo.path="]),
        (("+unipo=[a]",), ["unipo=['a']", "+unipo.path="]),
    ],
)
def test_what_makes_no_sense_is_said_in_one_line(overrides, words):
    with pytest.raises(PolicyError) as raised:
        given(*overrides)
    assert all(word in str(raised.value) for word in words), raised.value
    assert "\n" not in str(raised.value)


def test_a_path_may_be_made_of_other_settings():
    config = composed("+unipo.path=runs/${trainer.experiment_name}")
    assert Settings(config.unipo).path.name == config.trainer.experiment_name


# --- how updates are counted ---


@pytest.mark.parametrize(
    ("batch", "mini", "epochs", "expected"), [(8, 4, 2, 4), (8, 8, 1, 1), (1024, 256, 1, 4), (8, 4, 3, 6)]
)
def test_a_step_has_an_update_a_mini_batch_and_epoch(batch, mini, epochs, expected):
    config = composed(
        f"data.train_batch_size={batch}",
        f"actor_rollout_ref.actor.ppo_mini_batch_size={mini}",
        f"actor_rollout_ref.actor.ppo_epochs={epochs}",
    )
    plan = Plan(config)
    assert plan.updates_a_step == expected
    assert [plan.updates_until(step) for step in range(4)] == [0, expected, 2 * expected, 3 * expected]


def test_steps_that_train_the_critic_alone_have_no_update():
    """verl 0.9.1 updates the actor where critic_warmup <= global_steps, which begin at 1."""
    for warmup in range(5):
        plan = Plan(composed(f"trainer.critic_warmup={warmup}"))
        for until in range(8):
            trained = [step for step in range(1, until + 1) if warmup <= step]
            assert plan.updates_until(until) == len(trained) * plan.updates_a_step


def test_a_step_of_separate_async_has_several_batches():
    mode = "trainer.v1.trainer_mode=separate_async"
    plan = Plan(composed(mode, "trainer.v1.separate_async.parameter_sync_step=4", "data.train_batch_size=1024"))
    assert plan.updates_a_batch == plan.updates_a_step // 4 > 0
    assert Plan(composed()).updates_a_batch == Plan(composed()).updates_a_step


# --- what is said of the run ---


def test_the_record_of_a_run_is_json_and_holds_no_secrets():
    run = info(
        f"+ray_kwargs.ray_init.runtime_env.env_vars.WANDB_API_KEY={SECRET}",
        "actor_rollout_ref.model.path=/home/somebody/models/tiny",
        "data.train_files=[/data/gsm8k.parquet,/data/math.parquet]",
        "algorithm.adv_estimator=grpo",
        total_training_steps=10,
        use_reference_policy=True,
    )
    written = json.dumps(run.trainer.settings, allow_nan=False)
    assert SECRET not in written and "ray_kwargs" not in run.trainer.settings
    assert {"actor_rollout_ref", "algorithm", "critic", "data", "trainer", "output_dir"} <= set(run.trainer.settings)
    assert json.loads(run.header.model_dump_json()) == run.header.model_dump(mode="json")
    assert run.header.model_name == run.header.reference_model_name == "tiny"
    assert run.header.dataset == "gsm8k.parquet + math.parquet"
    assert run.header.algorithm == "grpo" and run.algorithm.id == "grpo.verl"
    assert run.header.totalSteps == 10 * Plan(composed("algorithm.adv_estimator=grpo")).updates_a_step
    assert run.trainer.library == "verl" and run.trainer.version
    assert run.decode([72, 105]) == "Hi"
    print(f"{len(written)} characters of settings")


def test_estimators_given_as_verls_own_enumeration_are_named():
    config = OmegaConf.merge(composed(), {"algorithm": {"adv_estimator": AdvantageEstimator.RLOO}})
    assert estimator_of(config) == "rloo"
    of = SimpleNamespace(config=config, tokenizer=Characters(), processor=None)
    names = {"reward_names": (), "reward_names_found": True}
    run = run_info(of, **names, steps_before=3, plan=Plan(config), strict=True)
    assert run.header.hparams["adv_estimator"] == "rloo"
    assert (run.steps_before, run.first_update) == (3, Plan(config).updates_until(3))
    json.dumps(run.trainer.settings, allow_nan=False)


@pytest.mark.parametrize(
    ("overrides", "level", "clip"),
    [
        (("actor_rollout_ref.actor.clip_ratio_high=0.28",), "token", (0.8, 1.28)),
        (("actor_rollout_ref.actor.policy_loss.loss_mode=gspo",), "sequence", (0.8, 1.2)),
        (("actor_rollout_ref.actor.policy_loss.loss_mode=gpg",), "token", None),
        (
            (
                "trainer.use_v1=False",
                "algorithm.rollout_correction.bypass_mode=True",
                "algorithm.rollout_correction.loss_type=reinforce",
                "algorithm.rollout_correction.rollout_is=sequence",
            ),
            "product",
            None,
        ),
    ],
)
def test_the_ratio_and_its_range_are_those_of_the_loss(overrides, level, clip):
    run = info("algorithm.adv_estimator=grpo", *overrides)
    assert run.ratio_level == level
    assert run.clip_range == (None if clip is None else pytest.approx(clip))


def test_rewards_gdpo_weighs_keep_its_order_and_weights():
    overrides = (
        "algorithm.adv_estimator=gdpo",
        "+algorithm.gdpo_reward_keys=[format,accuracy]",
        "+algorithm.gdpo_reward_weights=[1,2]",
    )
    assert component_keys(composed(*overrides)) == ("format", "accuracy")
    assert component_keys(composed(*overrides[1:])) is None
    assert info(*overrides, reward_names=("format", "accuracy")).reward_weights == (1.0, 2.0)


def test_whether_tokens_may_be_rejected_is_known():
    assert not rejects(composed())
    assert rejects(composed("algorithm.rollout_correction.rollout_rs=token_k1"))


def test_settings_that_cannot_be_read_cost_the_algorithm_and_not_the_run(monkeypatch, caplog):
    def unreadable(*_):
        raise KeyError("a setting of next year's")

    monkeypatch.setattr(settings, "spec_from_verl", unreadable)
    run = info.__wrapped__(strict=False)
    assert run.algorithm is None and run.header.algorithm == "unknown"
    assert (run.ratio_level, run.clip_range) == ("token", None)
    assert len(run.algorithm_notes) == len(caplog.records) == 1
    assert "Training goes on" in caplog.records[0].getMessage()
    with pytest.raises(KeyError, match="next year"):
        info.__wrapped__(strict=True)


def test_a_setting_verl_does_not_have_is_noted():
    run = info("actor_rollout_ref.actor.loss_agg_mode=none-of-them")
    assert any("none-of-them" in note for note in run.algorithm_notes)
