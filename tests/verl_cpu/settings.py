"""What a short run on the CPU needs of verl's configuration, by version; what a test gives comes after it and wins."""

from __future__ import annotations

import re
from pathlib import Path

from verl_cpu.assets import Assets
from verl_cpu.plugin import NAME

HERE = Path(__file__).parent

COMMON = """
trainer.device=cpu trainer.nnodes=1 trainer.logger=["console","file"]
trainer.val_before_train=False trainer.test_freq=-1 trainer.save_freq=-1 trainer.resume_mode=disable
trainer.total_epochs=1000
data.train_batch_size=8 data.max_prompt_length=32 data.max_response_length=8
data.dataloader_num_workers=0 data.filter_overlong_prompts=False data.seed=1
actor_rollout_ref.model.use_remove_padding=False actor_rollout_ref.model.enable_gradient_checkpointing=False
+actor_rollout_ref.model.override_config.attn_implementation=sdpa
actor_rollout_ref.actor.strategy=fsdp2 actor_rollout_ref.actor.use_torch_compile=False
actor_rollout_ref.actor.fsdp_config.use_torch_compile=False actor_rollout_ref.ref.fsdp_config.use_torch_compile=False
+actor_rollout_ref.actor.fsdp_config.mixed_precision.param_dtype=fp32
+actor_rollout_ref.actor.fsdp_config.mixed_precision.reduce_dtype=fp32
+actor_rollout_ref.actor.fsdp_config.mixed_precision.buffer_dtype=fp32
actor_rollout_ref.actor.ppo_mini_batch_size=4 actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=8
actor_rollout_ref.actor.ppo_epochs=2 actor_rollout_ref.actor.shuffle=True
actor_rollout_ref.actor.optim.lr=1e-3 actor_rollout_ref.actor.use_kl_loss=False
actor_rollout_ref.ref.log_prob_micro_batch_size_per_gpu=16
actor_rollout_ref.rollout.n=4 actor_rollout_ref.rollout.dtype=float32
actor_rollout_ref.rollout.tensor_model_parallel_size=1 actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu=16
actor_rollout_ref.rollout.calculate_log_probs=True actor_rollout_ref.rollout.agent.num_workers=1
reward.custom_reward_function.name=compute_score reward.num_workers=1
algorithm.adv_estimator=grpo algorithm.use_kl_in_reward=False
+ray_kwargs.ray_init.include_dashboard=False +ray_kwargs.ray_init.object_store_memory=100000000
"""


V1 = "transfer_queue.backend.SimpleStorage.num_data_storage_units=1"
"""Storage is a process each, and verl's default is 8."""

OLD_ENGINE = (
    "trainer.use_legacy_worker_impl=disable",
    "actor_rollout_ref.actor.fsdp_config.strategy=fsdp2",
    "actor_rollout_ref.ref.fsdp_config.strategy=fsdp2",
)
"""0.7 has two kinds of workers: these are the ones later versions have, and have a strategy of their own."""

CRITIC = (
    "algorithm.adv_estimator=gae",
    "critic.strategy=fsdp2",
    "critic.model.use_remove_padding=False",
    "critic.model.enable_gradient_checkpointing=False",
    "+critic.model.override_config.attn_implementation=sdpa",
    "critic.ppo_mini_batch_size=4",
    "critic.ppo_micro_batch_size_per_gpu=8",
    "critic.forward_micro_batch_size_per_gpu=16",
    "critic.optim.lr=1e-3",
)
"""GAE with a critic; the rest of its model's settings is made by `settings`."""


def version_of(text: str) -> tuple[int, ...]:
    """`0.9.1.dev0` → (0, 9, 1)."""
    return tuple(map(int, re.findall(r"\d+", text)[:3]))


def settings(version: str, assets: Assets, ranks: int, steps: int) -> list[str]:
    """Overrides for `version` of verl: `ranks` data-parallel ranks, `steps` steps."""
    known = version_of(version)
    made = [
        *COMMON.split(),
        f"reward.custom_reward_function.path={HERE / 'reward.py'}",
        f"data.train_files={assets.train}",
        f"data.val_files={assets.test}",
        f"actor_rollout_ref.model.path={assets.model}",
        f"critic.model.path={assets.model}",
        f"actor_rollout_ref.rollout.name={NAME}",
        f"actor_rollout_ref.rollout.agent.default_agent_loop={NAME}",
        f"++ray_kwargs.ray_init.runtime_env.py_executable={HERE / 'warm_python'}",
        f"trainer.n_gpus_per_node={ranks}",
        f"trainer.total_training_steps={steps}",
        # Three CPUs for each rank's place, and one for each other actor.
        f"ray_kwargs.ray_init.num_cpus={3 * ranks + 10}",
        f"+ray_kwargs.ray_init.num_gpus={ranks}",
    ]
    if known >= (0, 9):
        return [*made, V1]
    made.append(f"+ray_kwargs.ray_init.resources.cpu={ranks}")  # a rank's place asks for one of its `trainer.device`
    return [*made, *OLD_ENGINE] if known < (0, 8) else made
