"""Runs with every supported TRL (`make compat`): what a test needs, and what the table says of the environment."""

import platform

import pytest
import torch
import transformers
import trl
from trl_runs import TOKENIZER

from unipo_hooks.examples.trl_grpo import small_llama


@pytest.fixture(scope="session", autouse=True)
def environment(record_testsuite_property):
    """What the tests ran with, for the table."""
    for name, module in (("trl", trl), ("transformers", transformers), ("torch", torch)):
        record_testsuite_property(name, module.__version__)
    record_testsuite_property("python", platform.python_version())


@pytest.fixture(scope="session")
def saved_model(tmp_path_factory):
    """A small model in a folder: the reference model of beta > 0 is loaded by path."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("model")
    small_llama(TOKENIZER).save_pretrained(folder)
    TOKENIZER.save_pretrained(folder)
    return folder
