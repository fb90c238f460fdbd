"""A small model in a folder, as the reference model of beta > 0 is loaded by path."""

import gc

import pytest
from processes import Processes
from trl_runs import save_small_model


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
    return save_small_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="session")
def processes(saved_model):
    processes = Processes(saved_model)
    yield processes
    processes.close()
