"""Runs that several files look at: each is made once, when it is first asked for."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from verl_cpu.captured import Captured
    from verl_cpu.runs import Run


@pytest.fixture(scope="session")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Two steps of GRPO with nothing beside verl."""
    from verl_cpu.runs import main_ppo

    return main_ppo(tmp_path_factory.mktemp("alone"), steps=2)


@pytest.fixture(scope="session")
def captured(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Captured]:
    """Of the name of a setup: its run, captured while the witness watches."""
    from verl_cpu.captured import capture

    return cache(lambda name: capture(name, tmp_path_factory.mktemp(name)))
