"""`make demo-verl`: main_ppo teaches a small model to add digits, on the CPU, in about two minutes, and captures it.

The model first sees sums of which half are wrong; GRPO then teaches it to prefer the right ones. What comes after the
folder goes to verl: `python tests/verl_cpu/demo.py runs/demo-verl trainer.total_training_steps=10`.
"""

from __future__ import annotations

import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import mean

sys.path.insert(0, str(Path(__file__).parents[1]))

from verl_cpu.assets import LARGEST, Assets, make_assets
from verl_cpu.runs import started

STEPS, FIVE = 40, 5
SETTINGS = (
    "data.train_batch_size=16",
    "data.max_response_length=4",
    "actor_rollout_ref.rollout.n=8",
    "actor_rollout_ref.actor.ppo_mini_batch_size=8",
    "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=64",
    "actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu=128",
    "actor_rollout_ref.actor.optim.lr=3e-4",
    "reward.custom_reward_function.name=exact",
)


def half_right(a: int, b: int, draw: random.Random) -> int:
    """The sum, or any number in its place."""
    return a + b if draw.random() < 0.5 else draw.randint(0, 2 * LARGEST)


def train(bundle: Path, assets: Assets, folder: Path, *overrides: str) -> None:
    """main_ppo, with a line for every five steps: the prompts of one say little."""
    capture = f"+unipo.path={bundle.absolute()}"
    with started(folder, *SETTINGS, capture, *overrides, steps=STEPS, given=assets) as process:
        shown = 0
        while process.process.poll() is None:
            time.sleep(0.5)
            rows = process.rows()
            for last in range(shown + FIVE, len(rows) + 1, FIVE):
                reward = mean(row["critic/score/mean"] for row in rows[last - FIVE : last])
                print(f"  steps {last - FIVE + 1:2} to {last:2}: reward {reward:.2f}", flush=True)
            shown = len(rows) // FIVE * FIVE
        run = process.wait()
    for line in run.output.splitlines():
        if "unipo-hooks" in line:
            print(line)
    if run.status:
        sys.exit(f"main_ppo ended with status {run.status}; the end of its output:\n{run.output[-3000:]}")


def main(path: str = "runs/demo-verl", *overrides: str) -> None:
    """Train, then write the page beside the bundle."""
    bundle = Path(path)
    with tempfile.TemporaryDirectory() as folder:
        print("» a small model sees sums, half of them wrong", flush=True)
        assets = make_assets(Path(folder) / "assets", half_right, 300)
        print("» verl teaches it to add: python -m verl.trainer.main_ppo ... +unipo.path=" + path, flush=True)
        train(bundle, assets, Path(folder) / "run", *overrides)
    command = Path(sys.executable).with_name("unipo-hooks")
    subprocess.run([command, "export", bundle, "--html"], check=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
