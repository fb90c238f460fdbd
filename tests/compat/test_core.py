"""What the TRL adapter captures is what the trainer computed, whichever supported TRL trains.

Settings a version does not have are skipped.
"""

import logging

import numpy as np
import pytest
import torch
import trl
from trl import GRPOConfig
from trl_runs import DATASET, TOKENIZER, Watched, length, trainer_for, weights

from unipo_hooks import UnipoCallback, open_bundle
from unipo_hooks.adapters.trl.versions import CLIPPED_LOSSES, OTHER_LOSSES, parsed_version
from unipo_hooks.bundle import layout
from unipo_hooks.bundle.verify import verify
from unipo_hooks.examples.trl_grpo import exact, small_llama

VERSION = parsed_version(trl.__version__)
MOVED = {"num_iterations": 2, "learning_rate": 5e-2, "max_steps": 4}
"""Steps so large that the policy leaves the old one: ratios of 1 would prove little."""
RUNS = {
    "defaults": {},
    "bnpo, several updates a rollout": {"loss_type": "bnpo", **MOVED},
    "bnpo, accumulation": {"loss_type": "bnpo", "gradient_accumulation_steps": 2, **MOVED},
    "grpo": {"loss_type": "grpo", **MOVED},
    "grpo, accumulation": {"loss_type": "grpo", "gradient_accumulation_steps": 2, **MOVED},
    "dr_grpo": {"loss_type": "dr_grpo", **MOVED},
    "dapo": {"loss_type": "dapo", **MOVED},
    "dapo, accumulation": {"loss_type": "dapo", "gradient_accumulation_steps": 2, **MOVED},
    "dapo, two rollouts an update": {
        "loss_type": "dapo",
        "gradient_accumulation_steps": 4,
        "steps_per_generation": 2,
    },
    "luspo": {"loss_type": "luspo", "importance_sampling_level": "sequence", **MOVED},
    "cispo": {"loss_type": "cispo", "epsilon_high": 5.0, **MOVED},
    "sapo": {"loss_type": "sapo", **MOVED},
    "vespo": {"loss_type": "vespo", **MOVED},
    "several updates a rollout": {**MOVED, "steps_per_generation": 2, "max_steps": 8},
    "two rollouts an update": {"gradient_accumulation_steps": 4, "steps_per_generation": 2},
    "sequence level": {"importance_sampling_level": "sequence", **MOVED},
    "reference policy": {"beta": 0.05, **MOVED},
    "reference policy, accumulation": {"beta": 0.05, "gradient_accumulation_steps": 2, **MOVED},
    "upper cap": {"delta": 1.1, **MOVED},
    "entropy quantile": {"top_entropy_quantile": 0.5, **MOVED},
    "off-policy mask": {"off_policy_mask_threshold": 0.001, **MOVED},
    "entropy bonus": {"entropy_coef": 0.01, **MOVED},
    "unscaled rewards": {"scale_rewards": False, **MOVED},
    "batch scale": {"scale_rewards": "batch", **MOVED},
    "two rewards normalised apart": {"multi_objective_aggregation": "normalize_then_sum", **MOVED},
    "truncated responses masked": {"mask_truncated_completions": True, "max_completion_length": 3},
    "evaluation": {"eval_steps": 2},
    "evaluation, accumulation": {"eval_steps": 2, "gradient_accumulation_steps": 2},
}
try:
    from trl import RLOOConfig, RLOOTrainer
except ImportError:
    RLOOTrainer = None
if RLOOTrainer is not None and hasattr(RLOOTrainer, "_compute_loss"):  # up to 0.21 RLOO was a trainer of its own kind

    class WatchedRLOO(Watched, RLOOTrainer):
        """RLOOTrainer, watched."""

    RLOO = {"cls": WatchedRLOO, "config": RLOOConfig}
    RUNS |= {
        "rloo": {**RLOO, **MOVED},
        "rloo, accumulation": {**RLOO, **MOVED, "gradient_accumulation_steps": 2},
        "rloo, evaluation": {**RLOO, "num_iterations": 2, "eval_steps": 2},
    }


def supported(settings):
    """Skip what this version has no setting for."""
    loss_type = settings.get("loss_type")
    since = (CLIPPED_LOSSES | OTHER_LOSSES).get(loss_type, (0,))
    if since > VERSION:
        pytest.skip(f"TRL {trl.__version__} has no loss_type={loss_type}")
    config = settings.get("config", GRPOConfig)
    for name in sorted(settings.keys() - {"cls", "config"}):
        if name not in config.__dataclass_fields__:
            pytest.skip(f"TRL {trl.__version__} has no {name}")
    if settings.get("scale_rewards") == "batch" and VERSION < (0, 24):
        pytest.skip(f"TRL {trl.__version__} has no scale_rewards='batch'")


class Said(logging.Handler):
    """Keeps the lines that were logged."""

    def __init__(self):
        super().__init__(logging.WARNING)
        self.lines = []

    def emit(self, record):
        self.lines.append(record.getMessage())


@pytest.fixture(scope="module", params=RUNS)
def captured(request, saved_model, tmp_path_factory):
    """A run: the trainer, its bundle, what each reward function answered, and what was said of it."""
    settings = RUNS[request.param]
    supported(settings)
    folder = tmp_path_factory.mktemp("captured")
    callback = UnipoCallback(folder / "run", strict=True)
    answers = {exact: [], length: []}

    def kept(function):
        def reward(**given):
            answered = function(**given)
            answers[function].append(answered)
            return answered

        reward.__name__ = function.__name__
        return reward

    given = {"rewards": [kept(function) for function in answers]} | settings
    said = Said()
    logging.getLogger("unipo_hooks").addHandler(said)
    try:
        trainer = trainer_for(saved_model, folder, callbacks=[callback], **given)
        if "eval_steps" in settings:
            trainer.eval_dataset, trainer.args.eval_strategy = DATASET.select(range(4)), "steps"
        trainer.train()
    finally:
        logging.getLogger("unipo_hooks").removeHandler(said)
    assert [str(fault) for fault in verify(callback.path)] == []
    return trainer, open_bundle(callback.path), list(answers.values()), said.lines


def test_what_is_captured_is_the_trainers_own_bit_for_bit(captured, record_property):
    trainer, bundle, answers, _ = captured
    compared = 0
    kinds = ["train" if loss["train"] else "eval" for loss in trainer.losses]
    assert len(bundle.updates()) == trainer.state.global_step
    record_property("channels", " ".join(bundle.manifest.channels))
    passes = {
        kind: [
            (line["update"], index)
            for line in bundle.updates(kind=kind).to_pylist()
            for index, _ in enumerate(line["micro_batches"])
        ]
        for kind in ("train", "eval")
    }
    batches = rollouts_of(trainer)
    done = {"train": 0, "eval": 0}
    for kind, loss in zip(kinds, trainer.losses, strict=True):
        update, index = passes[kind][done[kind]]
        done[kind] += 1
        table = bundle.tokens(update=update, kind=kind).to_pandas()
        members = bundle.responses(update=update, kind=kind).to_pandas()
        members = members[members["micro_batch"] == index]
        assert len(members) == len(loss["ids"])
        for i, (rollout, row) in enumerate(zip(members["rollout"], members["row"], strict=True)):
            tokens = table[(table["micro_batch"] == index) & (table["rollout"] == rollout) & (table["row"] == row)]
            n = int(loss["mask"][i].sum())
            counted = tokens[tokens["mask"].to_numpy(bool)]
            assert len(counted) == n
            assert counted["ids"].tolist() == loss["ids"][i, :n].tolist()
            for name in ("log_probs", "entropies"):
                if loss[name] is not None:
                    assert same_bits(counted[name], loss[name][i, :n])
            batch, called = batches[kind][rollout]
            assert batch["completion_ids"][row, :n].tolist() == counted["ids"].tolist()
            member = members[(members["rollout"] == rollout) & (members["row"] == row)].iloc[0]
            assert np.float32(member["advantages"]) == batch["advantages"][row].item() == loss["advantages"][i].item()
            for key, name in (("old_per_token_logps", "old_log_probs"), ("ref_per_token_logps", "ref_log_probs")):
                if key in batch:
                    assert same_bits(counted[name], batch[key][row, :n])
            for number, answered in enumerate(answers):
                component = member[layout.component_column(number)]
                assert np.float32(component) == np.float32(answered[called][row])
            compared += n
    print(f"{compared} tokens compared bit for bit, {len(bundle.manifest.channels)} channels")
    assert compared
    assert {kind: len(found) for kind, found in passes.items()} == done


def rollouts_of(trainer):
    """By kind, the generation batches in order, and the how-manieth each is of all."""
    kinds = {"train": [], "eval": []}
    for number, (kind, batch) in enumerate(zip(trainer.generated_for, trainer.generated, strict=True)):
        kinds[kind].append((batch, number))
    return kinds


def same_bits(mine, theirs):
    return mine.to_numpy(np.float32).tobytes() == theirs.numpy().tobytes()


def test_the_loss_recomputed_from_what_was_captured_is_the_trainers(captured, record_property):
    trainer, bundle, _, said = captured
    worst, passes = 0.0, 0
    for kind in ("train", "eval"):
        parts = [part for row in bundle.updates(kind=kind).to_pylist() for part in row["micro_batches"]]
        assert len(parts) == sum(loss["train"] is (kind == "train") for loss in trainer.losses)
        worst = max([worst, *(abs(part["loss_gap"]) / part["loss_tolerance"] for part in parts)])
        assert max((part["token_gap"] or 0.0 for part in parts), default=0.0) < 1e-5
        passes += len(parts)
    print(f"largest gap {worst:.1%} of the tolerance, in {passes} passes")
    record_property("gap", f"{worst:.4f}")
    assert worst <= 1
    # RLOO of TRL 0.26 counts every step twice, and so samples anew at every update.
    if trainer.state.global_step > trainer.generated_for.count("train"):
        assert max(abs(ratio - 1) for ratio in bundle.metrics().column("importance_sampling_ratio").to_pylist()) > 1e-3
    assert bundle.manifest.algorithm_notes == []
    assert said == []


def test_training_is_bit_identical_with_and_without_capture(saved_model, tmp_path, record_property):
    without = weights(saved_model, tmp_path, [])
    callback = UnipoCallback(tmp_path / "run", strict=True)
    with_capture = weights(saved_model, tmp_path, [callback])
    assert len(open_bundle(callback.path).updates()) == 4
    start = small_llama(TOKENIZER).from_pretrained(saved_model).state_dict()
    assert not all(torch.equal(start[name], without[name]) for name in without), "nothing was trained"
    identical = all(torch.equal(without[name], with_capture[name]) for name in without)
    record_property("identical", str(identical))
    assert identical
