"""Runs with every supported TRL (`make compat`): what a test needs, and what the table says of the environment."""

import platform

import pytest
import torch
import transformers
import trl
from trl_runs import save_small_model


@pytest.fixture(scope="session", autouse=True)
def environment(record_testsuite_property):
    """What the tests ran with, for the table."""
    for name, module in (("trl", trl), ("transformers", transformers), ("torch", torch)):
        record_testsuite_property(name, module.__version__)
    record_testsuite_property("python", platform.python_version())


@pytest.fixture(scope="session")
def saved_model(tmp_path_factory):
    return save_small_model(tmp_path_factory.mktemp("model"))
