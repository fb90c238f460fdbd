"""Nothing of ours on the training thread waits for a device: tensors are copied, and read on another thread."""

import threading

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import TrainerCallback
from trl import GRPOTrainer, RLOOConfig, RLOOTrainer
from trl_runs import trainer_for

from unipo_hooks import UnipoCallback, open_bundle
from unipo_hooks.adapters.guard import Guard
from unipo_hooks.adapters.host import Copier
from unipo_hooks.adapters.trl.translate import to_array


class Operations(TorchDispatchMode):
    """Notes the operations torch is asked for."""

    def __init__(self, noted):
        super().__init__()
        self.noted = noted

    def __torch_dispatch__(self, function, types, arguments=(), named=None):
        self.noted.append(str(function))
        return function(*arguments, **named or {})


class Begun(TrainerCallback):
    """Calls something once training has begun: what is read before is read once."""

    def __init__(self, action):
        self.action = action

    def on_train_begin(self, args, state, control, **_):
        self.action()


ALLOWED = {
    # copies, and views of what is copied
    *("aten._to_copy.default", "aten.clone.default", "aten.detach.default", "aten.alias.default"),
    # the rows that travel with the batch, on the CPU
    *("aten.full.default", "aten.arange.default", "aten.arange.start_step", "aten.stack.default", "aten.cat.default"),
    *("aten.unsqueeze.default", "aten.lift_fresh.default"),
}


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"beta": 0.05, "top_entropy_quantile": 0.5, "off_policy_mask_threshold": 0.001, "entropy_coef": 0.01},
        {"cls": RLOOTrainer, "config": RLOOConfig, "beta": 0.05},
        {"eval_steps": 2, "eval_strategy": "steps", "gradient_accumulation_steps": 2},
    ],
    ids=str,
)
def test_the_hooks_ask_torch_for_copies_and_nothing_that_waits_for_a_device(
    saved_model, tmp_path, monkeypatch, settings
):
    """Reading a number (`item`), a comparison or a boolean index would each stop a GPU's queue."""
    noted, threads, always = [], set(), Guard.always

    def watched(self, action):
        threads.add(threading.current_thread().name)
        with Operations(noted):
            always(self, action)

    monkeypatch.setattr(Guard, "always", watched)
    callback = UnipoCallback(tmp_path / "run", strict=True)
    settings = {"cls": GRPOTrainer} | settings
    evaluated = settings.pop("eval_strategy", None)
    callbacks = [callback, Begun(noted.clear)]
    trainer = trainer_for(saved_model, tmp_path, callbacks=callbacks, num_iterations=2, **settings)
    if evaluated:
        trainer.eval_dataset, trainer.args.eval_strategy = trainer.train_dataset.select(range(4)), evaluated
    trainer.train()
    print(f"{len(noted)} operations: {sorted(set(noted))}")
    assert threads == {"MainThread"}
    assert len(open_bundle(callback.path).updates()) == 4
    assert noted.count("aten._to_copy.default") > 10
    assert set(noted) <= ALLOWED


def test_copies_are_of_what_the_tensors_were_and_keep_their_type():
    values = {
        "bfloat16": torch.randn(3, 5).to(torch.bfloat16),
        "float32": torch.randn(5, 3).T,
        "numbers": [torch.arange(4), torch.tensor(2.5)],
        "mask": torch.tensor([True, False]),
        "text": "as it is",
        "none": None,
    }
    before = {name: values[name].clone() for name in ("bfloat16", "float32", "mask")}
    copies = Copier()(values)
    for tensor in (values["bfloat16"], values["float32"], values["mask"], *values["numbers"]):
        tensor.zero_()
    found = copies.wait()
    assert found["text"] == "as it is" and found["none"] is None
    assert all(
        torch.equal(found[name], tensor) and found[name].dtype == tensor.dtype for name, tensor in before.items()
    )
    assert [each.tolist() for each in found["numbers"]] == [[0, 1, 2, 3], 2.5]
    assert copies.nbytes == 15 * 2 + 15 * 4 + 4 * 8 + 4 + 2


def test_a_tensor_that_is_there_twice_is_copied_once():
    tensor = torch.ones(8)
    copies = Copier()({"one": tensor, "two": [tensor]})
    found = copies.wait()
    assert found["one"] is found["two"][0]
    assert copies.nbytes == 32


def test_no_graph_is_kept_by_a_copy():
    leaf = torch.ones(3, requires_grad=True)
    found = Copier()({"loss": (leaf * 2).sum()}).wait()
    assert not found["loss"].requires_grad and found["loss"].grad_fn is None


def test_every_bfloat16_is_exact_as_float32():
    every = torch.arange(-(1 << 15), 1 << 15, dtype=torch.int32).to(torch.int16).view(torch.bfloat16)
    array = to_array(Copier()({"each": every}).wait()["each"])
    assert array.dtype == np.float32
    bits = array.view(np.uint32)
    assert np.array_equal(bits >> 16, every.view(torch.int16).numpy().view(np.uint16)) and not (bits & 0xFFFF).any()
