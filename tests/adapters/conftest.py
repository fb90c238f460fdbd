"""A small model in a folder, as the reference model of beta > 0 is loaded by path."""

import gc

import pytest
import torch
from processes import Processes
from trl_runs import TOKENIZER

from unipo_hooks.examples.trl_grpo import small_llama


@pytest.fixture(scope="module", autouse=True)
def quick_collections():
    """Trainers collect garbage when they begin: over all of torch and transformers it takes longer than a small run."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()
    gc.collect()


@pytest.fixture(scope="session")
def saved_model(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("model")
    small_llama(TOKENIZER).save_pretrained(folder)
    TOKENIZER.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def processes(saved_model):
    processes = Processes(saved_model)
    yield processes
    processes.close()
