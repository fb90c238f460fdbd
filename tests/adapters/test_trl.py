"""The TRL adapter on real trainers: what is captured is what the trainer computed."""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import Trainer, TrainerCallback, TrainingArguments
from trl import GRPOConfig, GRPOTrainer

from unipo_hooks import CapturePolicy, UnipoCallback, open_bundle
from unipo_hooks.adapters.trl import tap
from unipo_hooks.bundle import layout
from unipo_hooks.bundle.verify import verify
from unipo_hooks.errors import CaptureError
from unipo_hooks.examples.trl_grpo import digit_tokenizer, exact, small_llama

TOKENIZER = digit_tokenizer()
SUMS = [(a, b) for a in range(10) for b in range(10)]
DATASET = Dataset.from_dict({"prompt": [f"{a}+{b}=" for a, b in SUMS], "answer": [str(a + b) for a, b in SUMS]})


def length(completions, **_):
    """A second reward, so that every group has a spread."""
    return [0.1 * len(completion) for completion in completions]


class WatchedTrainer(GRPOTrainer):
    """A real GRPOTrainer that also keeps what it computes, by means of its own: overridden methods of the class."""

    def __init__(self, *args, **kwargs):
        self.generated, self.losses, self._last = [], [], None
        super().__init__(*args, **kwargs)

    def _generate_and_score_completions(self, inputs):
        batch = super()._generate_and_score_completions(inputs)
        self.generated.append({k: v.clone() for k, v in batch.items() if isinstance(v, torch.Tensor)})
        return batch

    def _get_per_token_logps_and_entropies(self, *args, **kwargs):
        self._last = super()._get_per_token_logps_and_entropies(*args, **kwargs)
        return self._last

    def _compute_loss(self, model, inputs):
        loss = super()._compute_loss(model, inputs)
        self.losses.append(
            {
                "step": self.state.global_step,
                "ids": inputs["completion_ids"].clone(),
                "mask": inputs["completion_mask"].clone(),
                "advantages": inputs["advantages"].clone(),
                "log_probs": self._last[0].detach().clone(),
                "entropies": self._last[1].detach().clone(),
                "loss": loss.item(),
                "train": self.model.training,
            }
        )
        return loss


@pytest.fixture(scope="session")
def saved_model(tmp_path_factory):
    """A small model in a folder, as the reference model of beta > 0 is loaded by path."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("model")
    small_llama(TOKENIZER).save_pretrained(folder)
    TOKENIZER.save_pretrained(folder)
    return folder


def trainer_for(saved_model, tmp_path, *, callbacks=(), cls=WatchedTrainer, rewards=(exact, length), **settings):
    model = small_llama(TOKENIZER).from_pretrained(saved_model)
    defaults = {
        "output_dir": str(tmp_path / "out"),
        "per_device_train_batch_size": 8,
        "num_generations": 4,
        "max_completion_length": 5,
        "max_steps": 4,
        "learning_rate": 1e-3,
        "logging_steps": 1,
        "report_to": "none",
        "save_strategy": "no",
        "use_cpu": True,
        "bf16": False,
        "activation_checkpointing": False,
        "disable_tqdm": True,
        "seed": 0,
    }
    return cls(
        model,
        reward_funcs=list(rewards),
        args=GRPOConfig(**defaults | settings),
        train_dataset=DATASET,
        processing_class=TOKENIZER,
        callbacks=list(callbacks),
    )


PLAIN_RUNS = {
    "defaults": {},
    "several updates a rollout": {"num_iterations": 2, "steps_per_generation": 2, "max_steps": 8},
    "accumulation": {"gradient_accumulation_steps": 2, "num_iterations": 2},
    "two rollouts an update": {"gradient_accumulation_steps": 4, "steps_per_generation": 2},
    "the same rows twice in an update": {
        "gradient_accumulation_steps": 2,
        "steps_per_generation": 1,
        "num_iterations": 2,
    },
    "reference policy": {"beta": 0.05, "num_iterations": 2},
    "grpo": {"loss_type": "grpo", "num_iterations": 3, "max_steps": 6},
    "dr_grpo": {"loss_type": "dr_grpo", "num_iterations": 2},
    "sequence level": {"importance_sampling_level": "sequence", "num_iterations": 2},
}


@pytest.fixture(params=PLAIN_RUNS)
def captured(request, saved_model, tmp_path):
    callback = UnipoCallback(tmp_path / "run", strict=True)
    trainer = trainer_for(saved_model, tmp_path, callbacks=[callback], **PLAIN_RUNS[request.param])
    trainer.train()
    assert [str(fault) for fault in verify(callback.path)] == []
    return trainer, open_bundle(callback.path)


def test_every_token_of_every_update_is_the_trainers_own_bit_for_bit(captured):
    trainer, bundle = captured
    updates = bundle.updates()
    assert updates.column("update").to_pylist() == list(range(trainer.state.global_step))
    compared = rows = 0
    passes = {}
    for number in range(trainer.state.global_step):
        table = bundle.tokens(update=number).to_pandas()
        membership = bundle.responses(update=number).to_pandas()
        for index, loss in enumerate(entry for entry in trainer.losses if entry["step"] == number):
            in_batch = membership[membership["micro_batch"] == index]
            of_batch = table[table["micro_batch"] == index]
            assert len(in_batch) == len(loss["ids"])
            for i, (rollout, row) in enumerate(zip(in_batch["rollout"], in_batch["row"], strict=True)):
                tokens = of_batch[(of_batch["rollout"] == rollout) & (of_batch["row"] == row)]
                n = int(loss["mask"][i].sum())
                assert len(tokens) == n
                assert tokens["ids"].tolist() == loss["ids"][i, :n].tolist()
                for name in ("log_probs", "entropies"):
                    mine = tokens[name].to_numpy(np.float32)
                    assert mine.tobytes() == loss[name][i, :n].numpy().tobytes()
                # identity: everything fixed at the rollout is that of the same row before TRL shuffled it
                batch = trainer.generated[rollout]
                assert batch["completion_ids"][row, :n].tolist() == tokens["ids"].tolist()
                assert np.float32(tokens["advantages"].iloc[0]) == batch["advantages"][row].item()
                for key, name in (("old_per_token_logps", "old_log_probs"), ("ref_per_token_logps", "ref_log_probs")):
                    if key in batch:
                        assert tokens[name].to_numpy(np.float32).tobytes() == batch[key][row, :n].numpy().tobytes()
                passes[rollout, row] = passes.get((rollout, row), 0) + 1
                compared, rows = compared + n, rows + 1
    print(f"{rows} responses, {compared} tokens compared bit for bit")
    assert set(passes.values()) == {trainer.num_iterations}
    assert len(passes) == sum(len(batch["completion_ids"]) for batch in trainer.generated)


def test_the_loss_recomputed_from_the_bundle_is_the_one_the_trainer_returned(captured):
    trainer, bundle = captured
    args, worst = trainer.args, 0.0
    for line in bundle.updates().to_pylist():
        table = bundle.tokens(update=line["update"]).to_pandas()
        for index, micro_batch in enumerate(line["micro_batches"]):
            of_batch = table[table["micro_batch"] == index]
            responses = [tokens.sort_values("position") for _, tokens in of_batch.groupby(["rollout", "row"])]
            assert len(responses) == micro_batch["rows"]
            loss = plain_loss(responses, args, micro_batch, line["accumulation_steps"])
            worst = max(worst, abs(loss - micro_batch["loss"]))
    assert sorted(m["loss"] for line in bundle.updates().to_pylist() for m in line["micro_batches"]) == sorted(
        entry["loss"] for entry in trainer.losses
    )
    print(f"largest error of the loss {worst:.1e}")
    assert worst < 1e-6


def plain_loss(responses, args, micro_batch, accumulation):
    """Clipped losses of TRL 1.16.0's `_compute_loss`, in float64, from a bundle's tokens alone."""
    objectives = []
    for tokens in responses:
        log_probs = tokens["log_probs"].to_numpy(np.float64)
        old = tokens["old_log_probs"].to_numpy(np.float64)
        advantage = tokens["advantages"].to_numpy(np.float64)
        log_ratio = log_probs - old
        if args.importance_sampling_level == "sequence":
            log_ratio = np.full_like(log_ratio, log_ratio.mean())
        ratio = np.exp(log_ratio)
        high = args.epsilon if args.epsilon_high is None else args.epsilon_high
        loss = -np.minimum(ratio * advantage, np.clip(ratio, 1 - args.epsilon, 1 + high) * advantage)
        if args.beta:
            gap = tokens["ref_log_probs"].to_numpy(np.float64) - log_probs
            kl = np.exp(gap) - gap - 1
            loss = loss + args.beta * kl * (ratio if args.use_bias_correction_kl else 1)
        objectives.append(loss)
    if args.loss_type == "grpo":
        return np.mean([loss.mean() for loss in objectives]) / accumulation
    total = sum(loss.sum() for loss in objectives)
    if args.loss_type == "dr_grpo":
        return total / (len(objectives) * args.max_completion_length) / accumulation
    return total / (micro_batch["num_items_in_batch"] * accumulation / args.steps_per_generation)


def test_metrics_are_those_on_the_trainers_own_charts(saved_model, tmp_path):
    callback = UnipoCallback(tmp_path / "run", strict=True)
    trainer = trainer_for(saved_model, tmp_path, callbacks=[callback], beta=0.05, num_iterations=2, max_steps=6)
    trainer.train()
    history = [entry for entry in trainer.state.log_history if "loss" in entry]
    metrics = open_bundle(callback.path).metrics().to_pylist()
    assert [row["step"] for row in metrics] == [entry["step"] for entry in history] == list(range(1, 7))
    worst = {}
    for row, logged in zip(metrics, history, strict=True):
        names = {
            "policy_loss": "loss",
            "entropy": "entropy",
            "kl": "kl",
            "clip_fraction_low": "clip_ratio/low_mean",
            "clip_fraction_high": "clip_ratio/high_mean",
            "clip_fraction": "clip_ratio/region_mean",
            "grad_norm": "grad_norm",
        }
        if row["is_first_step_after_rollout_phase"]:  # TRL says these once a rollout
            names |= {
                "reward": "reward",
                "reward_std": "reward_std",
                "zero_std_groups": "frac_reward_zero_std",
                "response_length": "completions/mean_length",
            }
        for ours, theirs in names.items():
            worst[ours] = max(worst.get(ours, 0.0), abs(row[ours] - logged[theirs]))
    print("largest error of each metric:", {name: f"{error:.1e}" for name, error in worst.items()})
    assert max(worst.values()) < 2e-6
    assert worst.keys() >= {"reward_std", "clip_fraction", "grad_norm", "kl"}
    assert [row["is_first_step_after_rollout_phase"] for row in metrics] == [True, False] * 3
    # TRL logs the rate of the step to come; a bundle has the one the update was made with
    assert [row["learning_rate"] for row in metrics] == pytest.approx([1e-3 * (1 - u / 6) for u in range(6)])


def weights(saved_model, tmp_path, callbacks):
    torch.manual_seed(3)
    trainer = trainer_for(saved_model, tmp_path, callbacks=callbacks, cls=GRPOTrainer, num_iterations=2, beta=0.01)
    trainer.train()
    return {name: tensor.detach().clone() for name, tensor in trainer.model.state_dict().items()}


def test_training_is_bit_identical_with_and_without_capture(saved_model, tmp_path):
    without = weights(saved_model, tmp_path, [])
    callback = UnipoCallback(tmp_path / "run", strict=True)
    captured = weights(saved_model, tmp_path, [callback])
    assert len(open_bundle(callback.path).updates()) == 4
    start = small_llama(TOKENIZER).from_pretrained(saved_model).state_dict()
    assert not all(torch.equal(start[name], without[name]) for name in without), "nothing was trained"
    assert all(torch.equal(without[name], captured[name]) for name in without)


def test_a_callback_added_after_the_trainer_was_made_finds_it_too(saved_model, tmp_path):
    trainer = trainer_for(saved_model, tmp_path)
    callback = UnipoCallback(tmp_path / "run", strict=True)
    trainer.add_callback(callback)
    trainer.train()
    assert len(open_bundle(callback.path).updates()) == 4


def test_without_a_path_the_bundle_is_in_the_output_folder(saved_model, tmp_path):
    callback = UnipoCallback()
    trainer_for(saved_model, tmp_path, callbacks=[callback], max_steps=1).train()
    assert callback.path == tmp_path / "out" / "unipo"
    assert len(open_bundle(callback.path).updates()) == 1


def test_groups_prompts_and_rewards_are_those_of_the_data(saved_model, tmp_path):
    callback = UnipoCallback(tmp_path / "run", strict=True)
    trainer_for(saved_model, tmp_path, callbacks=[callback], max_steps=2).train()
    bundle = open_bundle(callback.path)
    responses = bundle.responses().to_pandas()
    tokens = bundle.tokens(rollout=0).to_pandas()
    answers = dict(zip(DATASET["prompt"], DATASET["answer"], strict=True))
    assert bundle.manifest.reward_names == ["exact", "length"]
    for _, group in responses.groupby(["rollout", "group"]):
        assert len(group) == 4
        assert group["prompt"].nunique() == 1
    for _, response in responses[responses["rollout"] == 0].iterrows():
        mine = tokens[tokens["row"] == response["row"]]
        assert "".join(mine["strings"]) == TOKENIZER.decode(mine["ids"].tolist())
        text = TOKENIZER.decode(mine["ids"].tolist(), skip_special_tokens=True)
        expected = (*exact([text], [answers[response["prompt"]]]), *length([text]))
        components = [response[layout.component_column(number)] for number in range(2)]
        assert components == pytest.approx(expected)
        assert response["reward"] == pytest.approx(sum(expected))


def none_of_it(completions, **_):
    return [None] * len(completions)


def sometimes(completions, **_):
    return [float("nan") if i % 3 == 0 else 1.0 * i for i in range(len(completions))]


@pytest.mark.parametrize("rewards", [(none_of_it,), (none_of_it, exact), (sometimes, exact), (sometimes,)])
def test_rewards_that_are_none_or_nan_are_captured_as_they_are(saved_model, tmp_path, rewards):
    callback = UnipoCallback(tmp_path / "run", strict=True)
    trainer = trainer_for(saved_model, tmp_path, callbacks=[callback], rewards=rewards, max_steps=2)
    trainer.train()
    bundle = open_bundle(callback.path)
    assert [str(fault) for fault in verify(bundle.path)] == []
    rewards_B = bundle.responses(rollout=0).column("reward").to_numpy()
    if rewards == (none_of_it,):
        assert np.isnan(rewards_B).all()
    if rewards == (sometimes,):
        assert np.isnan(rewards_B).any() and not np.isnan(rewards_B).all()
    advantages = bundle.responses(rollout=0).column("advantages").to_numpy()
    assert np.array_equal(advantages, trainer.generated[0]["advantages"].numpy())


def test_a_trainer_that_is_not_grpo_like_trains_on_and_is_told_in_one_line(tmp_path, caplog):
    model = small_llama(TOKENIZER)
    example = TOKENIZER("1+1=2")["input_ids"]
    trainer = Trainer(
        model,
        TrainingArguments(
            output_dir=str(tmp_path / "out"), max_steps=2, use_cpu=True, report_to="none", disable_tqdm=True
        ),
        train_dataset=[{"input_ids": example, "labels": example}] * 8,
        callbacks=[UnipoCallback(tmp_path / "run")],
    )
    trainer.train()
    assert trainer.state.global_step == 2
    assert [m for m in caplog.messages if "unipo-hooks" in m] == [
        "unipo-hooks: capture is off: Trainer is not GRPO-like (it has no _generate_and_score_completions and no "
        "_compute_loss); use it with TRL's GRPOTrainer or a trainer derived from it. Training goes on."
    ]
    assert not (tmp_path / "run").exists()


def test_an_unwritable_path_costs_the_capture_not_the_training(saved_model, tmp_path, caplog):
    target = Path("/sys/unipo") if os.geteuid() == 0 else tmp_path / "locked" / "run"
    (tmp_path / "locked").mkdir(mode=0o500)
    trainer = trainer_for(saved_model, tmp_path, callbacks=[UnipoCallback(target)], max_steps=2)
    trainer.train()
    assert trainer.state.global_step == 2
    (message,) = [m for m in caplog.messages if "unipo-hooks" in m]
    assert message.startswith(f"unipo-hooks: capture is off: cannot write to {target}: ")


def test_strict_raises_where_capture_cannot_start(saved_model, tmp_path):
    (tmp_path / "file").write_text("")
    trainer = trainer_for(saved_model, tmp_path, callbacks=[UnipoCallback(tmp_path / "file" / "run", strict=True)])
    with pytest.raises(CaptureError, match="cannot write to"):
        trainer.train()


def test_a_defect_in_the_tap_costs_the_capture_not_the_training(saved_model, tmp_path, monkeypatch, caplog):
    without = weights(saved_model, tmp_path, [])
    monkeypatch.setattr(tap, "captured_micro_batch", lambda *_, **__: 1 / 0)
    assert all(
        torch.equal(tensor, without[name])
        for name, tensor in weights(saved_model, tmp_path, [UnipoCallback(tmp_path / "run")]).items()
    )
    assert len([m for m in caplog.messages if "ZeroDivisionError" in m]) == 1


def test_a_second_run_in_the_same_folder_goes_beside_it(saved_model, tmp_path):
    for name in ("run", "run-2"):
        callback = UnipoCallback(tmp_path / "run")
        trainer_for(saved_model, tmp_path, callbacks=[callback], max_steps=1).train()
        assert callback.path == tmp_path / name
        assert len(open_bundle(callback.path).updates()) == 1


class Stop(Exception):
    pass


class StopAt(TrainerCallback):
    """Training that ends in an exception."""

    def __init__(self, step):
        self.step = step

    def on_step_begin(self, args, state, control, **_):
        if state.global_step == self.step:
            self.step = None
            raise Stop


def test_training_that_ended_in_an_exception_and_is_started_anew_gives_two_bundles(saved_model, tmp_path):
    callback = UnipoCallback(tmp_path / "run", strict=True)
    trainer = trainer_for(saved_model, tmp_path, callbacks=[callback, StopAt(2)])
    with pytest.raises(Stop):
        trainer.train()
    trainer.train()
    first, second = open_bundle(tmp_path / "run"), open_bundle(tmp_path / "run-2")
    assert (first.manifest.status, second.manifest.status) == ("interrupted", "finished")
    assert first.updates().column("update").to_pylist() == [0, 1]
    assert second.updates().column("update").to_pylist() == [0, 1, 2, 3]


def test_a_run_resumed_from_a_checkpoint_goes_on_in_its_bundle(saved_model, tmp_path):
    settings = {"save_strategy": "steps", "save_steps": 2, "max_steps": 6}
    first = UnipoCallback(tmp_path / "run", strict=True)
    trainer = trainer_for(saved_model, tmp_path, callbacks=[first, StopAt(3)], **settings)
    with pytest.raises(Stop):
        trainer.train()
    first._recorder.close("interrupted")  # as the end of the process does
    again = UnipoCallback(tmp_path / "run", strict=True)
    trainer = trainer_for(saved_model, tmp_path, callbacks=[again], **settings)
    trainer.train(resume_from_checkpoint=True)
    bundle = open_bundle(tmp_path / "run")
    assert [str(fault) for fault in verify(bundle.path)] == []
    assert bundle.updates().column("update").to_pylist() == [0, 1, 2, 3, 4, 5]
    assert [attempt.first_update for attempt in bundle.manifest.attempts] == [0, 2]
    assert bundle.updates().column("attempt").to_pylist() == [0, 0, 1, 1, 1, 1]
    assert len(bundle.updates(superseded=True)) == 7


def test_one_callback_used_for_one_trainer_after_another_gives_each_its_bundle(saved_model, tmp_path):
    callback = UnipoCallback(tmp_path / "run", strict=True)
    first = trainer_for(saved_model, tmp_path, callbacks=[callback], max_steps=2)
    first.train()
    second = trainer_for(saved_model, tmp_path, callbacks=[callback], max_steps=3)
    second.train()
    assert [len(open_bundle(tmp_path / name).updates()) for name in ("run", "run-2")] == [2, 3]


def test_two_callbacks_on_one_trainer_capture_the_same(saved_model, tmp_path):
    callbacks = [UnipoCallback(tmp_path / name, strict=True) for name in ("one", "two")]
    trainer_for(saved_model, tmp_path, callbacks=callbacks, num_iterations=2).train()
    one, two = (open_bundle(callback.path).tokens(update=3) for callback in callbacks)
    assert len(one) > 0
    assert one.equals(two)


def test_training_may_change_the_working_directory(saved_model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    class Away(TrainerCallback):
        def on_step_begin(self, args, state, control, **_):
            os.chdir("/")

    trainer_for(saved_model, tmp_path, callbacks=[UnipoCallback("run", strict=True), Away()]).train()
    assert len(open_bundle(tmp_path / "run").updates()) == 4


def test_evaluation_during_training_is_kept_apart(saved_model, tmp_path):
    callback = UnipoCallback(tmp_path / "run", strict=True)
    trainer = trainer_for(saved_model, tmp_path, callbacks=[callback], max_steps=3, per_device_eval_batch_size=8)
    trainer.eval_dataset = DATASET.select(range(4))
    trainer.args.eval_strategy, trainer.args.eval_steps = "steps", 2
    trainer.train()
    bundle = open_bundle(callback.path)
    assert [str(fault) for fault in verify(bundle.path)] == []
    assert bundle.updates().column("update").to_pylist() == [0, 1, 2]
    evaluated = [entry for entry in trainer.losses if not entry["train"]]
    evaluations = bundle.updates(kind="eval").to_pylist()
    assert [line["update"] for line in evaluations] == list(range(len(evaluated)))
    assert [line["micro_batches"][0]["loss"] for line in evaluations] == [entry["loss"] for entry in evaluated]
    assert evaluated


def test_a_callback_given_twice_captures_once(saved_model, tmp_path):
    callback = UnipoCallback(tmp_path / "run", strict=True)
    trainer = trainer_for(saved_model, tmp_path, callbacks=[callback, callback], max_steps=2)
    trainer.add_callback(callback)
    trainer.train()
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith("run")] == ["run"]
    assert open_bundle(callback.path).updates().column("update").to_pylist() == [0, 1]
    assert len(open_bundle(callback.path).metrics()) == 2


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"on_full": "wait"}, "on_full is 'drop' or 'block', found 'wait'"),
        ({"policy": {"every": 3}}, "policy is a CapturePolicy, found dict"),
        ({"evry": 3}, "did you mean every?"),
    ],
)
def test_misuse_is_told_where_the_callback_is_made(settings, said):
    with pytest.raises((TypeError, ValueError), match=re.escape(said)):
        UnipoCallback("run", **settings)


def test_settings_by_name_and_policies_are_not_mixed():
    with pytest.raises(TypeError, match="either a policy or its settings by name"):
        UnipoCallback("run", CapturePolicy(), every=2)


KILLED = """
import sys
from unipo_hooks.examples.trl_grpo import main
main(sys.argv[1], steps=100000)
"""


@pytest.mark.slow
def test_a_real_run_killed_at_three_random_moments_leaves_whole_bundles(tmp_path):
    random = np.random.default_rng(1)
    for number in range(3):
        path = tmp_path / f"run{number}"
        run = subprocess.Popen([sys.executable, "-c", KILLED, str(path)], stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + 180
        index = path / layout.index_name(0)
        while not (index.exists() and index.stat().st_size) and time.monotonic() < deadline:
            time.sleep(0.2)
            assert run.poll() is None
        time.sleep(random.uniform(0, 4))
        committed = index.read_text().count("\n")
        run.kill()
        run.wait()
        assert [str(fault) for fault in verify(path) if fault.severity == "fault"] == []
        bundle = open_bundle(path)
        updates = bundle.updates().column("update").to_pylist()
        assert updates == list(range(len(updates)))
        assert len(updates) + len(bundle.rollouts()) >= committed > 0
        metrics = (path / layout.metrics_name(0)).read_text().splitlines()[:-1]
        assert max(json.loads(line)["update"] for line in metrics) >= updates[-1]
        assert len(bundle.tokens(update=updates[-1]))
        print(f"kill {number}: {len(updates)} updates survived")
