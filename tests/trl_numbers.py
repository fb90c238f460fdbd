"""Every number of a bundle against the trainer's own tensors, whatever went into the run."""

import numpy as np
import torch
from trl import GRPOTrainer
from trl_runs import Watched

from unipo_hooks.bundle import layout
from unipo_hooks.bundle.verify import verify

FILLED = {"old_per_token_logps": "old_log_probs", "ref_per_token_logps": "ref_log_probs"}
"""Keys whose tensors hold a filler where attention is masked."""


class KeptTrainer(Watched, GRPOTrainer):
    """A real GRPOTrainer, watched, that also keeps what its reward functions were given and gave."""

    def __init__(self, *args, **kwargs):
        self.scored = []
        super().__init__(*args, **kwargs)

    def _calculate_rewards(self, inputs, prompts, completions, completion_ids_list):
        rewards = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        ids = [list(ids) for ids in completion_ids_list]
        self.scored.append({"prompts": prompts, "completions": completions, "ids": ids, "rewards": rewards.clone()})
        return rewards


def compare(trainer, bundle):
    """Fails where a stored number is not the trainer's own, bit for bit; tokens of rollouts and of updates compared."""
    assert [str(fault) for fault in verify(bundle.path)] == []
    lost = bundle.manifest.lost
    assert (lost.rollouts, lost.updates) == (0, 0), lost.reason
    of_rollouts = sum(_rollout(trainer, bundle, number) for number in range(len(trainer.generated)))
    of_updates = sum(_update(trainer, bundle, number) for number in range(trainer.state.global_step))
    passes = [part for row in bundle.updates().to_pylist() for part in row["micro_batches"]]
    worst = max(abs(part["loss_gap"]) / part["loss_tolerance"] for part in passes)
    token = max(part["token_gap"] for part in passes)
    print(f"{of_rollouts} + {of_updates} tokens bit for bit; gap {worst:.1e} of the tolerance, of a token {token:.1e}")
    assert len(passes) == len(trainer.losses) and worst <= 1
    assert sorted(part["loss"] for part in passes) == sorted(entry["loss"] for entry in trainer.losses)
    return of_rollouts, of_updates


def same(column, tensor):
    """Whether a column holds the float32 values of a tensor: exact for half precision too."""
    return column.to_numpy(np.float32).tobytes() == tensor.float().numpy().tobytes()


def identical(one, other):
    """Fails where two trainers did not arrive at the same weights, bit for bit, or one of them trained nothing."""
    ours, theirs = one.model.state_dict(), other.model.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert any(entry.get("grad_norm", 0) > 0 for entry in one.state.log_history), "nothing was trained"


def _rollout(trainer, bundle, number):
    batch, scored = trainer.generated[number], trainer.scored[number]
    table = bundle.tokens(rollout=number).to_pandas()
    responses = bundle.responses(rollout=number).to_pandas()
    tokenizer = getattr(trainer.processing_class, "tokenizer", trainer.processing_class)
    assert len(responses) == len(scored["ids"])
    for row, ids in enumerate(scored["ids"]):
        response = responses[responses["row"] == row].iloc[0]
        tokens = table[table["row"] == row]
        n = len(ids)
        assert response["length"] == n == len(tokens)
        assert tokens["ids"].tolist() == ids == batch["completion_ids"][row, :n].tolist()
        assert "".join(tokens["strings"]) == tokenizer.decode(ids, clean_up_tokenization_spaces=False)
        attended = batch["completion_mask"][row, :n].bool().numpy()
        tool_mask = batch["tool_mask"][row, :n].bool().numpy() if "tool_mask" in batch else np.ones(n, bool)
        assert tokens["mask"].tolist() == (attended & tool_mask).astype(int).tolist()
        reasons = np.where(attended & tool_mask, 0, np.where(attended, 1, 2))
        if reasons.any() or "mask_reason" in tokens:
            assert tokens["mask_reason"].tolist() == reasons.tolist()
        for key, name in FILLED.items():
            if key in batch:
                assert same(tokens[name][attended], batch[key][row, :n][attended])
                assert tokens[name][~attended].isna().all()
        if "sampling_per_token_logps" in batch:
            sampled = batch["sampling_per_token_logps"][row, :n]
            known = tool_mask | (sampled != 0).numpy()
            assert same(tokens["rollout_log_probs"][known], sampled[known])
            assert tokens["rollout_log_probs"][~known].isna().all()
        if "importance_sampling_ratio" in batch:  # one a token, or one a response
            weight = batch["importance_sampling_ratio"][row]
            if len(weight) == 1:
                assert np.float32(response["is_weights"]) == weight.item()
            else:
                assert same(tokens["is_weights"], weight[:n])
        assert np.float32(response["advantages"]) == batch["advantages"][row].item()
        rewards = scored["rewards"][row].numpy()
        components = [response[layout.component_column(k)] for k in range(len(rewards))]
        assert np.array_equal(np.float32(components), rewards, equal_nan=True)
    return len(table)


def _update(trainer, bundle, number):
    table = bundle.tokens(update=number).to_pandas()
    membership = bundle.responses(update=number).to_pandas()
    entries = [entry for entry in trainer.losses if entry["step"] == number and entry["train"]]
    for index, entry in enumerate(entries):
        in_batch = membership[membership["micro_batch"] == index]
        of_batch = table[table["micro_batch"] == index]
        assert len(in_batch) == len(entry["ids"])
        for i, (rollout, row) in enumerate(zip(in_batch["rollout"], in_batch["row"], strict=True)):
            tokens = of_batch[(of_batch["rollout"] == rollout) & (of_batch["row"] == row)]
            ids = trainer.scored[rollout]["ids"][row]
            n = len(ids)
            assert tokens["ids"].tolist() == ids == entry["ids"][i, :n].tolist()
            attended = entry["mask"][i, :n].bool().numpy()
            for name in ("log_probs", "entropies"):
                assert same(tokens[name][attended], entry[name][i, :n][attended])
                assert tokens[name][~attended].isna().all()
    return len(table)
