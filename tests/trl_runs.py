"""Small GRPO runs for tests: a real trainer on a very small model, and one that keeps what it computes itself."""

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, MixtralConfig, MixtralForCausalLM
from trl import GRPOConfig, GRPOTrainer

from unipo_hooks.examples.trl_grpo import SUMS, digit_tokenizer, exact, small_llama

TOKENIZER = digit_tokenizer()
DATASET = Dataset.from_dict({"prompt": [f"{a}+{b}=" for a, b in SUMS], "answer": [str(a + b) for a, b in SUMS]})

LOG_PROBS = "_get_per_token_logps_and_entropies"
if not hasattr(GRPOTrainer, LOG_PROBS):  # up to TRL 0.19
    LOG_PROBS = "_get_per_token_logps"


def length(completions, **_):
    """A second reward, so that every group has a spread."""
    return [0.1 * len(completion) for completion in completions]


def small_mixture(tokenizer):
    """A mixture of experts as small as the Llama, whose router has a loss."""
    return MixtralForCausalLM(
        MixtralConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=2,
            num_local_experts=4,
            num_experts_per_tok=2,
            max_position_embeddings=64,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


class Watched:
    """Beside a real trainer: keeps what it computes, by means of its own: overridden methods of the class."""

    def __init__(self, *args, **kwargs):
        self.generated, self.generated_for, self.losses, self._last = [], [], [], None
        super().__init__(*args, **kwargs)

    def _generate_and_score_completions(self, inputs):
        batch = super()._generate_and_score_completions(inputs)
        self.generated.append({k: v.clone() for k, v in batch.items() if isinstance(v, torch.Tensor)})
        self.generated_for.append("train" if self.model.training else "eval")
        return batch

    def _compute_loss(self, model, inputs):
        self._last = None
        loss = super()._compute_loss(model, inputs)
        self.losses.append(
            {
                "step": self.state.global_step,
                "ids": inputs["completion_ids"].clone(),
                "mask": inputs["completion_mask"].clone(),
                "advantages": inputs["advantages"].clone(),
                "log_probs": self._last[0].detach().clone(),
                "entropies": None if self._last[1] is None else self._last[1].detach().clone(),
                "loss": loss.item(),
                "train": self.model.training,
            }
        )
        return loss


def _log_probs(self, *args, **kwargs):
    result = getattr(super(Watched, self), LOG_PROBS)(*args, **kwargs)
    if self._last is not None:  # TRL 0.18 asks for the reference's afterwards
        return result
    if isinstance(result, torch.Tensor):  # up to TRL 0.19
        self._last = result, None
    elif isinstance(result, dict):  # TRL 0.20 and 0.21
        self._last = result["logps"], result.get("entropies")
    else:
        self._last = result
    return result


setattr(Watched, LOG_PROBS, _log_probs)


class WatchedTrainer(Watched, GRPOTrainer):
    """A real GRPOTrainer, watched."""


QUICK = {
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
"""Settings of a run that takes a moment."""


def save_small_model(folder):
    """A small model in a folder: the reference model of beta > 0 is loaded by path."""
    torch.manual_seed(0)
    small_llama(TOKENIZER).save_pretrained(folder)
    TOKENIZER.save_pretrained(folder)
    return folder


def trainer_for(
    saved_model, tmp_path, *, callbacks=(), cls=WatchedTrainer, config=GRPOConfig, rewards=(exact, length), **settings
):
    model = AutoModelForCausalLM.from_pretrained(saved_model)
    defaults = {"output_dir": str(tmp_path / "out")} | QUICK
    return cls(
        model,
        reward_funcs=list(rewards),
        args=config(**{name: defaults[name] for name in defaults if name in config.__dataclass_fields__} | settings),
        train_dataset=DATASET,
        processing_class=TOKENIZER,
        callbacks=list(callbacks),
    )


def weights(saved_model, tmp_path, callbacks):
    torch.manual_seed(3)
    trainer = trainer_for(saved_model, tmp_path, callbacks=callbacks, cls=GRPOTrainer, num_iterations=2, beta=0.01)
    trainer.train()
    return {name: tensor.detach().clone() for name, tensor in trainer.model.state_dict().items()}
