"""However the model trains, what is captured is the trainer's own: adapters, compiled, recomputed, in halves."""

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM
from trl import GRPOConfig, GRPOTrainer
from trl_numbers import KeptTrainer, compare, identical
from trl_runs import DATASET, QUICK, TOKENIZER, length

from unipo_hooks import UnipoCallback, open_bundle
from unipo_hooks.examples.trl_grpo import exact
from unipo_hooks.reconcile import TOLERANCES

COMPILED = {"torch_compile": True, "torch_compile_backend": "eager"}
REENTRANT = {"activation_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": True}}
LORA = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")


def small(folder, **settings):
    return AutoModelForCausalLM.from_pretrained(folder, **settings)


def trained_before(folder):
    """A model with an adapter that is no longer at its start: the reference is a copy of it."""
    model = get_peft_model(small(folder), LORA)
    torch.manual_seed(1)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            weight.data.normal_(std=0.1)
    return model


MODELS = {
    "a new adapter": (small, {"peft_config": LORA}, {}),
    "an adapter trained before": (trained_before, {}, {}),
    "a new adapter, recomputed": (small, {"peft_config": LORA}, {"activation_checkpointing": True}),
    "compiled": (small, {}, COMPILED),
    "recomputed in the backward pass": (small, {}, {"activation_checkpointing": True}),
    "recomputed, reentrant": (small, {}, REENTRANT),
    "autocast to bfloat16": (small, {}, {"bf16": True}),
    "weights in bfloat16": (lambda folder: small(folder, dtype=torch.bfloat16), {}, {}),
    "an adapter on weights in bfloat16": (
        lambda folder: small(folder, dtype=torch.bfloat16),
        {"peft_config": LORA},
        {"bf16": True},
    ),
    "padded to multiples": (small, {}, {"pad_to_multiple_of": 8}),
    "batches from other processes": (small, {}, {"dataloader_num_workers": 2}),
}


@pytest.fixture
def train(saved_model, tmp_path):
    """Trains four updates on two rollouts, against a reference; the trainer, and the bundle where it was captured."""

    def trained(make, of_trainer, settings, *, cls=KeptTrainer, capture=True):
        callback = UnipoCallback(tmp_path / "run", strict=True)
        defaults = (
            QUICK | {"output_dir": str(tmp_path / "out")} | {"num_iterations": 2, "beta": 0.05, "learning_rate": 1e-2}
        )
        trainer = cls(
            make(saved_model),
            reward_funcs=[exact, length],
            args=GRPOConfig(**defaults | settings),
            train_dataset=DATASET,
            processing_class=TOKENIZER,
            callbacks=[callback] if capture else [],
            **of_trainer,
        )
        trainer.train()
        return (trainer, open_bundle(callback.path)) if capture else trainer

    return trained


@pytest.mark.parametrize("name", MODELS)
def test_every_number_is_the_trainers_own(train, name):
    trainer, bundle = train(*MODELS[name])
    compare(trainer, bundle)
    last = trainer.generated[-1]
    apart = (last["old_per_token_logps"] - last["ref_per_token_logps"])[last["completion_mask"].bool()].abs().max()
    print(f"policy and reference are up to {apart:.2f} apart")
    assert apart > 1e-2
    assert {"ref_log_probs", "token_kl"} <= set(bundle.manifest.channels)


@pytest.mark.parametrize("name", ["a new adapter", "an adapter trained before", "compiled", "recomputed, reentrant"])
def test_training_is_bit_identical_with_and_without_capture(train, name):
    without = train(*MODELS[name], cls=GRPOTrainer, capture=False)
    captured, bundle = train(*MODELS[name], cls=GRPOTrainer)
    assert len(bundle.updates()) == 4
    identical(without, captured)


class Halves(KeptTrainer):
    """A trainer that gives log-probs and entropies in bfloat16, as one without a head in float32 does."""

    def _get_per_token_logps_and_entropies(self, *args, **kwargs):
        log_probs, entropies, *rest = super()._get_per_token_logps_and_entropies(*args, **kwargs)
        self._last = log_probs.bfloat16(), None if entropies is None else entropies.bfloat16(), *rest
        return self._last


def test_numbers_in_bfloat16_are_stored_exactly_and_so_is_their_type(train):
    trainer, bundle = train(small, {}, {"beta": 0.0}, cls=Halves)
    compare(trainer, bundle)
    assert trainer.losses[0]["log_probs"].dtype == torch.bfloat16
    table = bundle.tokens(update=0).to_pandas()
    bits = table["log_probs"].to_numpy(np.float32).view(np.uint32)
    assert not (bits & 0xFFFF).any(), "more bits than bfloat16 has"
    passes = [part for row in bundle.updates().to_pylist() for part in row["micro_batches"]]
    assert {part["dtype"] for part in passes} == {"bfloat16"}
    assert all(part["loss_tolerance"] >= TOLERANCES["bfloat16"] for part in passes)
