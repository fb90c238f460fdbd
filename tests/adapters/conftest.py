"""A small model in a folder, as the reference model of beta > 0 is loaded by path."""

import pytest
import torch
from trl_runs import TOKENIZER

from unipo_hooks.examples.trl_grpo import small_llama


@pytest.fixture(scope="session")
def saved_model(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("model")
    small_llama(TOKENIZER).save_pretrained(folder)
    TOKENIZER.save_pretrained(folder)
    return folder
