"""Makes the captured run that tests/viewer/test_verl.py opens: `.venv-verl/bin/python tests/verl_cpu/make_fixture.py`.

GAE with a critic, gspo, a KL penalty against a reference policy and an entropy bonus: every channel verl has. Two steps
of a model that has seen sums of which half are wrong, so that its responses can be read.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from verl_cpu.assets import make_assets
from verl_cpu.captured import SETUPS
from verl_cpu.demo import half_right
from verl_cpu.runs import main_ppo

HERE = Path(__file__).parent
FIXTURE = HERE.parent / "fixtures" / "verl" / "gae"
SETTINGS = (
    *SETUPS["gae"].overrides,
    "data.train_batch_size=4",
    "data.max_response_length=4",
    "actor_rollout_ref.actor.optim.lr=1e-2",  # so that ratios move
)


def main() -> None:
    """Train, and put the bundle in the fixture's place, without the names of folders of this machine."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        assets = make_assets(folder / "assets", half_right, 300)
        there = (
            *(f"{of}.model.path={assets.model}" for of in ("actor_rollout_ref", "critic")),
            *(f"data.{of}_files={assets.train}" for of in ("train", "val")),
        )
        bundle = folder / "gae"
        main_ppo(folder / "run", *there, *SETTINGS, f"+unipo.path={bundle}", steps=2)
        manifest = bundle / "manifest.json"
        text = manifest.read_text()
        for place, name in ((str(HERE), "tests/verl_cpu"), (str(assets.train.parent), "assets"), (temporary, "runs")):
            text = text.replace(place, name)
        manifest.write_text(text)
        shutil.rmtree(FIXTURE, ignore_errors=True)
        shutil.copytree(bundle, FIXTURE)
    print(f"{sum(path.stat().st_size for path in FIXTURE.rglob('*') if path.is_file()) / 1e3:.0f} kB in {FIXTURE}")


if __name__ == "__main__":
    main()
