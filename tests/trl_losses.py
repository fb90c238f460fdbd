"""TRL's own loss and advantages on its own rollouts, in float64 and with ∂loss/∂log_probs by autograd.

Everything is computed by TRL: `_generate_and_score_completions` and `_compute_loss` of a real trainer with a small real
model. Only what goes in is changed: the settings, the log-probs a sampler claims, and how far the policy has moved.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import trl
from precision import float64
from trl import GRPOConfig, GRPOTrainer
from trl.trainer.utils import split_tensor_dict
from trl_runs import DATASET, trainer_for

from unipo_hooks.adapters.trl.algorithm import spec_from_trl
from unipo_hooks.adapters.trl.normalisers import divided_afterwards, normalisers_from_trl
from unipo_hooks.adapters.trl.versions import parsed_version
from unipo_hooks.algorithm_spec import AlgorithmSpec
from unipo_hooks.examples.trl_grpo import exact
from unipo_hooks.objective.inputs import Batch, Normalisers

LOSSES = ("grpo", "bnpo", "dr_grpo", "dapo", "luspo", "cispo", "sapo", "vespo")
ACCUMULATED, PER_GENERATION = 3, 2
"""Micro-batches an update averages, and how many of them a generation batch gives."""

NAMES = {
    "completion_mask": "mask",
    "old_per_token_logps": "old_log_probs",
    "ref_per_token_logps": "ref_log_probs",
    "sampling_per_token_logps": "rollout_log_probs",
    "importance_sampling_ratio": "is_weights",
    "advantages": "advantages",
    "truncated": "truncated",
}
"""TRL's name → the engine's."""


def length(completions, **_):
    """A second reward, which differs from response to response."""
    return [0.1 * len(completion) for completion in completions]


def sometimes(completions, **_):
    """A reward that has nothing to say of some responses."""
    return [None if number % 3 == 0 else 0.3 * len(text) for number, text in enumerate(completions)]


def rarely(completions, **_):
    """A reward that is the same for all responses of some prompts."""
    return [float(number % 5 == 0) for number, _ in enumerate(completions)]


@dataclass(frozen=True)
class Loss:
    """What TRL computed for a micro-batch, and the micro-batch as the engine takes it."""

    loss: float
    gradient_BT: np.ndarray
    arrays: dict[str, np.ndarray]
    normalisers: dict[str, Any]
    spec: AlgorithmSpec
    unknown: tuple[str, ...]
    reward_weights: list[float] | None

    @property
    def batch(self) -> Batch:
        return Batch(normalisers=Normalisers(**self.normalisers), **self.arrays)


@contextmanager
def replaced(target: Any, **methods: Any) -> Iterator[None]:
    """An object with other methods, or attributes, for a while."""
    before = {name: target.__dict__[name] for name in methods if name in target.__dict__}
    target.__dict__.update(methods)
    try:
        yield
    finally:
        for name in methods:
            del target.__dict__[name]
        target.__dict__.update(before)


def doubled(value: Any) -> Any:
    """A tensor of floats in float64; anything else as it is."""
    return value.double() if isinstance(value, torch.Tensor) and value.is_floating_point() else value


class Losses:
    """A real trainer whose settings change from case to case."""

    def __init__(
        self,
        saved_model: Any,
        folder: Any,
        cls: type = GRPOTrainer,
        config: type = GRPOConfig,
        rewards: Any = (exact, length),
        prompts: int = 4,
        **settings: Any,
    ):
        torch.manual_seed(0)
        settings = {"beta": 0.1} | settings
        self.trainer = trainer_for(saved_model, folder, cls=cls, config=config, rewards=rewards, **settings)
        self.trainer.model.train()
        self._args = self.trainer.args
        self._rollouts: dict[Any, dict[str, Any]] = {}
        self._texts: dict[int, Any] = {}
        self.prompts = prompts
        noise = torch.Generator().manual_seed(1)
        with torch.no_grad():
            # The policy is no longer the reference.
            for parameter in self.trainer.model.parameters():
                parameter += 0.1 * torch.randn(parameter.shape, generator=noise)

    def configure(self, **settings: Any) -> Any:
        """Give the trainer settings as its `__init__` does; returns the configuration that says so."""
        trainer, args = self.trainer, copy.copy(self._args)
        unknown = settings.keys() - vars(args).keys()
        assert not unknown, unknown
        vars(args).update(settings)
        trainer.args = args
        for name in vars(args).keys() & vars(trainer).keys() - {"reward_weights"}:
            setattr(trainer, name, getattr(args, name))
        trainer.epsilon_low = args.epsilon
        trainer.epsilon_high = args.epsilon if args.epsilon_high is None else args.epsilon_high
        if getattr(args, "reward_weights", None):
            trainer.reward_weights = torch.tensor(args.reward_weights, dtype=torch.float64)
        if hasattr(args, "entropy_coef"):
            trainer._entropy_bonus_enabled = args.entropy_coef != 0 or args.use_adaptive_entropy
        trainer.current_gradient_accumulation_steps = args.gradient_accumulation_steps
        return args

    def rollout(self, seed: int = 0, spread: float = 0.3, **settings: Any) -> dict[str, Any]:
        """TRL's own generation batch with what its reward functions gave, floats in float64.

        With `use_vllm` the sampler is said to have claimed log-probs `spread` nats away. Kept from case to case, as
        generating is what takes time.
        """
        key = (seed, spread, *sorted((name, str(value)) for name, value in settings.items()))
        if key not in self._rollouts:
            self._rollouts[key] = self._generated(seed, spread, settings)
        return dict(self._rollouts[key])

    def _generated(self, seed: int, spread: float, settings: dict[str, Any]) -> dict[str, Any]:
        trainer, seen = self.trainer, {}
        generate, rewards_of = trainer._generate, trainer._calculate_rewards
        forward = trainer._get_per_token_logps_and_entropies
        noise = torch.Generator().manual_seed(seed)

        def claimed(prompts):
            trainer.use_vllm = False
            if seed not in self._texts:
                self._texts[seed] = generate(prompts)
            result = list(copy.deepcopy(self._texts[seed]))
            seen["ids"] = result[1]
            if settings.get("use_vllm"):
                trainer.use_vllm = True
                result[4] = [
                    (own + spread * torch.randn(len(own), generator=noise)).tolist()
                    for own in map(self._log_probs, result[0], result[1])
                ]
            return tuple(result)

        def kept(*arguments):
            seen["components"] = rewards_of(*arguments).double()
            return seen["components"]

        def precise(model, *arguments, **named):
            result = tuple(map(doubled, forward(model, *arguments, **named)))
            seen["reference" if model is trainer.ref_model else "old"] = result[0]
            return result

        self.configure(**settings)
        rows = [dict(DATASET[row // trainer.num_generations]) for row in range(self.prompts * trainer.num_generations)]
        torch.manual_seed(seed)
        with (
            float64(),
            replaced(
                trainer,
                _generate=claimed,
                _calculate_rewards=kept,
                _get_per_token_logps_and_entropies=precise,
            ),
        ):
            batch = trainer._generate_and_score_completions(rows)
        ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1)
        attended = torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1)
        ended = {*trainer.eos_token_ids, trainer.processing_class.pad_token_id}
        with torch.no_grad():
            now = forward(trainer.model, ids, attended, batch["completion_ids"].size(1), compute_entropy=True)
        # RLOOTrainer keeps sums over the response alone; these are what it summed.
        summed = {"old_per_token_logps": "old", "ref_per_token_logps": "reference"} if "old_logps" in batch else {}
        batch |= {name: seen[each] for name, each in summed.items() if each in seen}
        return {name: doubled(value) for name, value in batch.items()} | {
            "log_probs": now[0].double(),
            "entropies": now[1].double(),
            "components": seen["components"],
            "attended": (torch.arange(now[0].size(1)) < torch.tensor([[len(each)] for each in seen["ids"]])).long(),
            "group": torch.arange(len(rows)) // trainer.num_generations,
            "truncated": torch.tensor([each[-1] not in ended for each in seen["ids"]]).long(),
        }

    def _log_probs(self, prompt: list[int], completion: list[int]) -> torch.Tensor:
        every = torch.tensor([prompt + completion])
        with torch.no_grad():
            found = self.trainer._get_per_token_logps_and_entropies(
                self.trainer.model, every, torch.ones_like(every), len(completion)
            )
        return found[0][0].double()

    def loss(
        self,
        rollout: dict[str, Any],
        *,
        moved: float = 0.0,
        seed: int = 0,
        tools: bool = False,
        part: int = 0,
        training: bool = True,
        release: tuple[str, Callable[..., Any]] | None = None,
        **settings: Any,
    ) -> Loss:
        """The loss of one micro-batch of a rollout under the settings, the policy having moved since by `moved` nats.

        `tools` makes some tokens a tool's, which do not count. `release` is another version of TRL and its
        `_compute_loss`, which is then what computes.
        """
        version, compute = release or (trl.__version__, type(self.trainer)._compute_loss)
        settings = {"gradient_accumulation_steps": ACCUMULATED, "steps_per_generation": PER_GENERATION} | settings
        args, trainer = self.configure(**settings), self.trainer
        noise = torch.Generator().manual_seed(seed)
        whole = dict(rollout)
        shift = moved * torch.randn(whole["log_probs"].shape, generator=noise, dtype=torch.float64)
        whole["log_probs"] = whole["log_probs"] + shift * whole["completion_mask"]
        if tools:
            whole["tool_mask"] = (torch.rand(shift.shape, generator=noise) > 0.3).long()
        inputs = split_tensor_dict(whole, args.steps_per_generation)[part]
        leaf = inputs["log_probs"].clone().requires_grad_()
        forwarded = (leaf, inputs["entropies"], torch.zeros(()))[: 3 if parsed_version(version) >= (1, 7) else 2]
        factors: list[Any] = []

        def watched(method):
            def watching(*arguments, **named):
                factors.append(method(*arguments, **named))
                return factors[-1]

            return watching

        masks = [name for name in ("get_high_entropy_mask", "get_off_policy_mask") if hasattr(trainer, name)]
        trainer.model.train(training)
        with (
            float64(),
            replaced(
                trainer,
                _get_per_token_logps_and_entropies=lambda *_, **__: forwarded,
                _get_per_token_logps=lambda *_, **__: leaf,
                **{name: watched(getattr(trainer, name)) for name in masks},
            ),
        ):
            value = compute(trainer, trainer.model, inputs)
        if training and divided_afterwards(version, type(trainer).__name__):
            value = value / args.gradient_accumulation_steps
        (gradient,) = torch.autograd.grad(value, leaf, allow_unused=True)
        trainer.model.train()

        arrays = {mine: inputs[theirs].numpy() for theirs, mine in NAMES.items() if theirs in inputs}
        if "tool_mask" in inputs:
            arrays["mask"] = arrays["mask"] * inputs["tool_mask"].numpy()
        arrays["log_probs"], arrays["entropies"] = leaf.detach().numpy(), inputs["entropies"].numpy()
        arrays.setdefault("old_log_probs", arrays["log_probs"])
        if "is_weights" in arrays and arrays["is_weights"].shape[1] == 1:
            arrays["is_weights"] = arrays["is_weights"][:, 0]
        if factors:
            arrays["policy_mask"] = np.prod(np.broadcast_arrays(arrays["mask"], *factors)[1:], axis=0).astype(float)
        name = type(trainer).__name__
        answer = spec_from_trl(settings if release else args, version, trainer_class=name)
        items = inputs.get("num_items_in_batch")
        normalisers = normalisers_from_trl(
            loss_type=getattr(args, "loss_type", ""),
            trl_version=version,
            training=training,
            accumulation_steps=args.gradient_accumulation_steps,
            steps_per_generation=args.steps_per_generation,
            num_items_in_batch=None if items is None else items.item(),
            max_completion_length=args.max_completion_length,
            trainer_class=name,
        )
        given = {name: getattr(normalisers, name) for name in Normalisers.__dataclass_fields__}
        known = {name: each for name, each in given.items() if each != getattr(Normalisers(), name)}
        return Loss(value.item(), gradient.numpy(), arrays, known, answer.spec, answer.unknown, args.reward_weights)
