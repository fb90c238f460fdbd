"""Runs that are put together in other ways than one trainer, one callback and one `train()`."""

import copy
import gc
import weakref

import pytest
import torch
from transformers import TrainerCallback
from trl import GRPOTrainer
from trl_runs import DATASET, trainer_for, weights

from unipo_hooks import UnipoCallback, open_bundle
from unipo_hooks.adapters.host import Copier
from unipo_hooks.bundle.verify import verify


class OwnLoss(GRPOTrainer):
    """Computes its loss without TRL's `_compute_loss`, as Unsloth's trainer does."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], dim=1)
        return model(input_ids=ids).logits.float().logsumexp(-1).mean()


def whole(path):
    assert [str(fault) for fault in verify(path)] == []
    return open_bundle(path)


def test_updates_of_a_loss_nobody_can_read_are_counted_and_said_once(saved_model, tmp_path, caplog):
    callback = UnipoCallback(tmp_path / "run")
    trainer = trainer_for(saved_model, tmp_path, callbacks=[callback], cls=OwnLoss, max_steps=6)
    live = []

    class Live(TrainerCallback):
        def on_step_end(self, args, state, control, **_):
            callback._recorder.flush()
            live.append(len(callback._recorder._session._rollouts["train"]))

    trainer.add_callback(Live())
    trainer.train()
    said = [line for line in caplog.messages if "unipo-hooks" in line]
    print(said, live)
    assert "OwnLoss trained without its _compute_loss" in said[0] and said[0].endswith("Training goes on.")
    assert len(said) == 2
    bundle = whole(callback.path)
    assert bundle.manifest.lost.updates == 6
    assert len(bundle.rollouts()) == 6
    assert max(live) <= 2


def test_what_was_sampled_before_the_callback_was_added_is_counted(saved_model, tmp_path):
    settings = {"steps_per_generation": 4, "max_steps": 1}
    trainer = trainer_for(saved_model, tmp_path, cls=GRPOTrainer, **settings)
    trainer.train()
    callback = UnipoCallback(tmp_path / "run", strict=True)
    trainer.add_callback(callback)
    trainer.args.max_steps = 4
    trainer.train()
    bundle = whole(callback.path)
    stored = bundle.updates().column("update").to_pylist()
    assert (stored, bundle.manifest.lost.updates) == ([3], 3)
    assert "before this start" in bundle.manifest.lost.reason


def test_a_callback_that_is_removed_ends_its_bundle(saved_model, tmp_path):
    callback = UnipoCallback(tmp_path / "run", strict=True)

    class Remove(TrainerCallback):
        def on_step_begin(self, args, state, control, **_):
            if state.global_step == 2:
                trainer.remove_callback(callback)

    trainer = trainer_for(saved_model, tmp_path, callbacks=[callback, Remove()], max_steps=6)
    trainer.train()
    bundle = whole(callback.path)
    assert bundle.manifest.status == "interrupted"
    assert bundle.updates().column("update").to_pylist() == [0, 1]
    assert callback._micro_batches == []


def test_a_prediction_between_two_trainings_is_part_of_neither(saved_model, tmp_path):
    callback = UnipoCallback(tmp_path / "run", strict=True)
    trainer = trainer_for(saved_model, tmp_path, callbacks=[callback], max_steps=3, per_device_eval_batch_size=8)
    trainer.train()
    trainer.predict(DATASET.select(range(4)))
    trainer.train()
    first, second = whole(tmp_path / "run"), whole(tmp_path / "run-2")
    assert [len(bundle.metrics()) for bundle in (first, second)] == [3, 3]
    assert [attempt.status for attempt in first.manifest.attempts] == ["finished", "finished"]
    assert len(first.updates(kind="eval")) == 2


def test_an_evaluation_before_training_is_its_beginning(saved_model, tmp_path):
    callback = UnipoCallback(tmp_path / "run", strict=True)
    trainer = trainer_for(saved_model, tmp_path, callbacks=[callback], max_steps=2, per_device_eval_batch_size=8)
    trainer.evaluate(DATASET.select(range(4)))
    trainer.train()
    bundle = whole(tmp_path / "run")
    assert bundle.manifest.header.totalSteps == 2
    assert len(bundle.manifest.attempts) == 1
    assert (len(bundle.updates()), len(bundle.updates(kind="eval"))) == (2, 2)


def test_an_evaluation_before_a_resumed_training_leaves_the_run_its_bundle(saved_model, tmp_path):
    settings = {"save_strategy": "steps", "save_steps": 2, "per_device_eval_batch_size": 8}
    trainer_for(saved_model, tmp_path, callbacks=[UnipoCallback(tmp_path / "run")], max_steps=3, **settings).train()
    callback = UnipoCallback(tmp_path / "run", strict=True)
    trainer = trainer_for(saved_model, tmp_path, callbacks=[callback], max_steps=4, **settings)
    trainer.evaluate(DATASET.select(range(4)))
    trainer.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-2"))
    bundle = whole(tmp_path / "run")
    assert bundle.updates().column("update").to_pylist() == [0, 1, 2, 3]
    assert [attempt.first_update for attempt in bundle.manifest.attempts] == [0, 2]
    assert len(whole(tmp_path / "run-2").updates(kind="eval")) == 2


def test_a_trainer_that_only_evaluates_ends_with_itself(saved_model, tmp_path):
    callbacks = []
    for number in range(3):
        callbacks.append(UnipoCallback(tmp_path / f"run{number}", strict=True))
        trainer = trainer_for(saved_model, tmp_path, callbacks=callbacks[-1:], per_device_eval_batch_size=8)
        trainer.evaluate(DATASET.select(range(4)))
    del trainer
    gc.collect()
    for callback in callbacks:
        callback._recorder._thread.join(60)
        assert not callback._recorder._thread.is_alive()
        assert whole(callback.path).manifest.status == "finished"


def test_a_callback_that_is_kept_does_not_keep_the_trainer(saved_model, tmp_path):
    callback = UnipoCallback(tmp_path / "run", strict=True)
    trainer = trainer_for(saved_model, tmp_path, callbacks=[callback], cls=GRPOTrainer, max_steps=1)
    trainer.train()
    gone = weakref.ref(trainer), weakref.ref(trainer.model)
    del trainer
    gc.collect()
    assert [each() for each in gone] == [None, None]
    assert len(open_bundle(callback.path).updates()) == 1


def test_a_copy_of_a_trainer_trains_itself(saved_model, tmp_path):
    callback = UnipoCallback(tmp_path / "run", strict=True)
    trainer = trainer_for(saved_model, tmp_path, callbacks=[callback], cls=GRPOTrainer, max_steps=2)
    twin = copy.deepcopy(trainer)
    before = {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}
    twin.train()
    assert (trainer.state.global_step, twin.state.global_step) == (0, 2)
    assert all(torch.equal(tensor, before[name]) for name, tensor in trainer.model.state_dict().items())


class Failure(Exception):
    pass


def test_a_generation_that_fails_leaves_no_tensors(saved_model, tmp_path):
    kept = []

    class Failing(GRPOTrainer):
        def _calculate_rewards(self, *args, **kwargs):
            return super()._calculate_rewards(*args, **kwargs)

        def _get_per_token_logps_and_entropies(self, *args, **kwargs):
            found = super()._get_per_token_logps_and_entropies(*args, **kwargs)
            kept.append(weakref.ref(found[0]))
            return found

    def failing(completions, **_):
        raise Failure

    callback = UnipoCallback(tmp_path / "run", strict=True)
    settings = {"rewards": (failing,), "num_iterations": 2, "cls": Failing}
    trainer = trainer_for(saved_model, tmp_path, callbacks=[callback], **settings)
    gc.collect()
    gc.disable()
    try:
        with pytest.raises(Failure):
            trainer.train()
        assert kept and [each() for each in kept] == [None] * len(kept)
    finally:
        gc.enable()


def test_capture_that_failed_is_tried_again_when_training_begins_again(saved_model, tmp_path):
    (tmp_path / "place").write_text("a file where a folder should be")
    callback = UnipoCallback(tmp_path / "place" / "run")
    trainer = trainer_for(saved_model, tmp_path, callbacks=[callback], max_steps=2)
    trainer.train()
    assert not (tmp_path / "place" / "run").exists()
    (tmp_path / "place").unlink()
    trainer.train()
    assert len(whole(callback.path).updates()) == 2


def test_training_is_bit_identical_whatever_is_done_with_the_callback(saved_model, tmp_path):
    class Toggle(TrainerCallback):
        """Takes the callback away and gives it back."""

        def on_step_begin(self, args, state, control, **_):
            if state.global_step == 1:
                self.trainer.remove_callback(callback)
            if state.global_step == 3:
                self.trainer.add_callback(callback)

        def on_init_end(self, args, state, control, **_):
            import sys

            frame = sys._getframe(1)
            while not isinstance(frame.f_locals.get("self"), GRPOTrainer):
                frame = frame.f_back
            self.trainer = frame.f_locals["self"]

    callback = UnipoCallback(tmp_path / "run", strict=True)
    without, toggled = weights(saved_model, tmp_path, []), weights(saved_model, tmp_path, [callback, Toggle()])
    assert all(torch.equal(tensor, without[name]) for name, tensor in toggled.items())


def test_copies_stay_on_the_host_whatever_the_default_device_is():
    source = torch.arange(3)
    with torch.device("meta"):
        found = Copier()({"each": source}).wait()["each"]
    assert found.device.type == "cpu" and found.tolist() == [0, 1, 2]
