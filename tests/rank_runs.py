"""What each of two processes that train together does: `torchrun --nproc_per_node 2 rank_runs.py NAMES MODEL FOLDER`.

A process keeps what its own trainer computed in `FOLDER/NAME.rRANK.pt`, for the test to compare bundles with.
"""

import logging
import os
import signal
import sys
from pathlib import Path

import torch
from transformers import TrainerCallback
from trl import GRPOTrainer
from trl_runs import DATASET, WatchedTrainer, trainer_for

from unipo_hooks import UnipoCallback
from unipo_hooks.adapters.trl import callback as callback_module
from unipo_hooks.adapters.trl import ranks
from unipo_hooks.bundle import segment
from unipo_hooks.session import Session

RANK = int(os.environ.get("RANK", "0"))
TOGETHER = {
    "ddp_backend": "gloo",
    "per_device_train_batch_size": 4,
    "num_generations": 8,
    "max_completion_length": 24,
    "max_grad_norm": 0.0,
}
"""A group of 8 on two ranks with 4 responses each; gradients are not clipped, so that they can be compared."""

LOSSES = {
    "dapo": {},
    "grpo": {"loss_type": "grpo", "gradient_accumulation_steps": 2},
    "bnpo": {"loss_type": "bnpo"},
    "dr_grpo": {"loss_type": "dr_grpo", "beta": 0.05},
    "cispo": {"loss_type": "cispo", "epsilon_high": 2.0},
    "vespo": {"loss_type": "vespo"},
    "sequence": {"importance_sampling_level": "sequence", "loss_type": "grpo"},
    "entropy": {"top_entropy_quantile": 0.5},
    "batch": {"scale_rewards": "batch", "steps_per_generation": 2, "gradient_accumulation_steps": 2},
}
"""Settings whose loss and gradient are compared with the trainer's."""


class RankTrainer(WatchedTrainer):
    """Keeps what a loss was asked of, and its derivative by every log-prob."""

    def _compute_loss(self, model, inputs):
        loss = super()._compute_loss(model, inputs)
        entry = self.losses[-1]
        entry["prompt_ids"], entry["prompt_mask"] = inputs["prompt_ids"].clone(), inputs["prompt_mask"].clone()
        if self._last[0].requires_grad:
            self._last[0].register_hook(lambda gradient: entry.update(gradient=gradient.clone()))
        return loss


class Gradients(TrainerCallback):
    """Keeps the gradients of the first update, as the optimizer gets them."""

    def __init__(self):
        self.first = None

    def on_pre_optimizer_step(self, args, state, control, model=None, **_):
        if self.first is None:
            named = model.named_parameters()
            self.first = {name.removeprefix("module."): each.grad.clone() for name, each in named}


class Heard(logging.Handler):
    """What was logged."""

    def __init__(self):
        super().__init__()
        self.lines = []

    def emit(self, record):
        self.lines.append(record.getMessage())


class KillAt(TrainerCallback):
    """Both processes die after a step, rank 1 with everything on the disk and rank 0 with what happened to be there."""

    def __init__(self, step, unipo):
        self.step, self.unipo = step, unipo

    def on_step_end(self, args, state, control, **_):
        if state.global_step == self.step:
            if RANK:
                self.unipo._recorder.flush()
            torch.distributed.barrier()
            os.kill(os.getpid(), signal.SIGKILL)


def kept(trainer, path, heard, **more):
    model = trainer.accelerator.unwrap_model(trainer.model)
    return {
        "path": None if path is None else str(path),
        "weights": {name: tensor.detach().clone() for name, tensor in model.state_dict().items()},
        "generated": getattr(trainer, "generated", []),
        "generated_for": getattr(trainer, "generated_for", []),
        "losses": getattr(trainer, "losses", []),
        "history": trainer.state.log_history,
        "steps": trainer.state.global_step,
        "heard": heard.lines,
        **more,
    }


def trained(model, folder, heard, *, cls=RankTrainer, callbacks=(), **settings):
    torch.manual_seed(3)
    gradients = Gradients()
    together = {**TOGETHER, **settings}
    trainer = trainer_for(model, folder, callbacks=[*callbacks, gradients], cls=cls, **together)
    trainer.train()
    unipo = next(iter(callbacks), None)
    return kept(trainer, unipo and unipo.path, heard, gradients=gradients.first)


def plain(model, folder, heard):
    """A run of two iterations with a reference policy, and an evaluation after every second update."""

    def evaluating(*args, **kwargs):
        trainer = RankTrainer(*args, **kwargs)
        trainer.eval_dataset = DATASET.select(range(4))
        trainer.args.eval_strategy, trainer.args.eval_steps = "steps", 2
        return trainer

    settings = {"num_iterations": 2, "beta": 0.05, "max_steps": 6, "per_device_eval_batch_size": 4}
    return trained(
        model, folder, heard, cls=evaluating, callbacks=[UnipoCallback(folder / "run", strict=True)], **settings
    )


def without(model, folder, heard):
    """The same training as the next, without capture."""
    return trained(model, folder, heard, cls=GRPOTrainer, num_iterations=2, beta=0.05)


def second(model, folder, heard):
    """A second run into the folder of the first."""
    callbacks = [UnipoCallback(folder / "run", strict=True)]
    return trained(model, folder, heard, cls=GRPOTrainer, callbacks=callbacks, num_iterations=2, beta=0.05)


def unwritable(model, folder, heard):
    """Rank 0 cannot write; the others could."""
    (folder / "file").touch()
    path = folder / "file" / "run" if RANK == 0 else folder / "elsewhere"
    return trained(model, folder, heard, cls=GRPOTrainer, callbacks=[UnipoCallback(path)], num_iterations=2, beta=0.05)


def without_rank_1(model, folder, heard):
    """Capture cannot start on rank 1."""
    original = callback_module.run_info
    if RANK == 1:
        callback_module.run_info = lambda *_, **__: 1 / 0
    callbacks = [UnipoCallback(folder / "rank0")]
    found = trained(model, folder, heard, cls=GRPOTrainer, callbacks=callbacks, num_iterations=2, beta=0.05)
    callback_module.run_info = original
    return found


def half(model, folder, heard):
    """Capture fails on rank 1 after its second update."""
    original = Session._update

    def failing(session, update):
        if RANK == 1 and update.update == 2:
            raise ZeroDivisionError
        original(session, update)

    Session._update = failing
    callbacks = [UnipoCallback(folder / "half")]
    found = trained(model, folder, heard, cls=GRPOTrainer, callbacks=callbacks, num_iterations=2, beta=0.05)
    Session._update = original
    return found


def unheard(model, folder, heard):
    """Every rank makes a callback, and rank 1 alone gives it to its trainer."""
    ranks.PATIENCE = 0.3
    callback = UnipoCallback(folder / "unheard")
    callbacks = [callback] if RANK else []
    found = trained(model, folder, heard, cls=GRPOTrainer, callbacks=callbacks, num_iterations=2, beta=0.05)
    ranks.PATIENCE = 30.0
    return found


def no_store(model, folder, heard):
    """torch.distributed's store cannot be had."""
    original = ranks._store
    ranks._store = lambda: None
    callbacks = [UnipoCallback(folder / "alone")]
    found = trained(model, folder, heard, cls=GRPOTrainer, callbacks=callbacks, num_iterations=2, beta=0.05)
    ranks._store = original
    return found


def losses(model, folder, heard):
    """Every setting of `LOSSES`, two updates of it."""
    every = {}
    for name, settings in LOSSES.items():
        callbacks = [UnipoCallback(folder / name, strict=True)]
        every[name] = trained(
            model, folder / "losses", heard, callbacks=callbacks, max_steps=2, num_iterations=2, **settings
        )
    return every


BUDGET = 40_000
"""Bytes that `sampled` may keep, of all ranks together."""


def sampled(model, folder, heard):
    """A budget too small for the run: which rollouts are kept is decided on each rank."""
    callbacks = [UnipoCallback(folder / "sampled", strict=True, max_bytes=BUDGET)]
    before = segment.MAX_SECONDS
    segment.MAX_SECONDS = 3600.0  # on a slow machine the files' own kilobytes would take most of so small a budget
    try:
        return trained(model, folder, heard, cls=GRPOTrainer, callbacks=callbacks, max_steps=40)
    finally:
        segment.MAX_SECONDS = before


CHECKPOINTS = {"save_strategy": "steps", "save_steps": 2, "max_steps": 8}


def killed(model, folder, heard):
    """Dies after the fifth update, one after the checkpoint."""
    unipo = UnipoCallback(folder / "killed", strict=True)
    trained(model, folder / "again", heard, callbacks=[unipo, KillAt(5, unipo)], cls=GRPOTrainer, **CHECKPOINTS)


def resumed(model, folder, heard):
    """Goes on from the checkpoint."""
    unipo = UnipoCallback(folder / "killed", strict=True)
    trainer = trainer_for(model, folder / "again", callbacks=[unipo], cls=RankTrainer, **TOGETHER, **CHECKPOINTS)
    trainer.train(resume_from_checkpoint=True)
    return kept(trainer, unipo.path, heard)


def main(names, model, folder):
    torch.set_num_threads(1)
    log = logging.getLogger("unipo_hooks")
    for name in names.split(","):
        heard = Heard()
        log.addHandler(heard)
        torch.save(globals()[name](model, folder, heard), folder / f"{name}.r{RANK}.pt")
        log.removeHandler(heard)
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
