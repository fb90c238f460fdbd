"""What every process that imports verl loads: it waits for verl's trainers, and touches nothing else.

verl loads it while it is itself being imported: through the entry point `verl.plugins` (0.9 and later), or because
VERL_USE_EXTERNAL_MODULES names the package (0.6 and later). It swallows what goes wrong then, so nothing may: this
module imports nothing but the standard library.
"""

from __future__ import annotations

import functools
import importlib.util
import logging
import sys
import weakref
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

TRAINERS = {
    "verl.trainer.ppo.v1.trainer_base": "PPOTrainer",
    "verl.trainer.ppo.ray_trainer": "RayPPOTrainer",
}
"""Module of verl → the class in it whose instances drive a run."""

OTHER_LAUNCHERS = ("fully_async", "one_step_off", "main_ppo_sync")
"""Parts of the names of verl's commands whose trainers are made in ways of their own."""

NOT_CAPTURED = (
    "unipo-hooks: runs of this command are not captured; those of python -m verl.trainer.main_ppo are (verl 0.9: "
    "trainer.v1.trainer_mode sync or colocate_async, and trainer.use_v1=False; 0.7 and 0.8: engine workers). "
    "Training goes on."
)

VALUE_HEAD = "AutoModelForCausalLMWithValueHead"
"""What verl imports of TRL wherever TRL is installed, and newer TRLs no longer have."""

log = logging.getLogger("unipo_hooks")

_made: weakref.WeakSet[Any] = weakref.WeakSet()
"""Trainers that were looked at."""

_wrapped: set[type] = set()
"""Trainers that are looked at: finders that ask one another may load a module under our eyes more than once."""


class Watcher(MetaPathFinder):
    """Has a look at the trainers' modules once they are loaded; finds nothing by itself."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The spec the other finders give, whose loader tells us; None for any other module."""
        if fullname not in TRAINERS:
            return None
        others = (finder for finder in sys.meta_path if finder is not self)
        found = (finder.find_spec(fullname, path, target) for finder in others)
        spec = next((spec for spec in found if spec is not None), None)
        if spec is not None and spec.loader is not None:
            with suppress(AttributeError, TypeError):  # a loader that cannot be told to tell us
                then = _and_then(spec.loader.exec_module, _wrap_trainer)
                spec.loader.exec_module = then  # type: ignore[method-assign]
        return spec


def watch() -> None:
    """Wait for verl's trainers, those included that are loaded already. A second call does nothing."""
    if any(isinstance(finder, Watcher) for finder in sys.meta_path):
        return
    sys.meta_path.insert(0, Watcher())
    for name in TRAINERS:
        if name in sys.modules:
            _wrap_trainer(sys.modules[name])
    if any(argument.lstrip("+").startswith("unipo.path=") for argument in sys.argv):
        _tell_what_will_fail()


def _and_then(action: Callable[[ModuleType], None], ours: Callable[[ModuleType], None]) -> Callable[..., None]:
    def both(module: ModuleType) -> None:
        action(module)
        ours(module)

    return both


def _wrap_trainer(module: ModuleType) -> None:
    """Have every trainer that is made of the module's class looked at when it is made."""
    cls = getattr(module, TRAINERS.get(module.__name__, ""), None)
    if isinstance(cls, type) and cls not in _wrapped:
        _wrapped.add(cls)
        cls.__init__ = _and_attach(cls.__init__)  # type: ignore[misc]
        if hasattr(cls, "_update_actor"):
            cls._update_actor = _unless_passed_by(cls._update_actor)


def _and_attach(init: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(init)
    def made(self: Any, *args: Any, **kwargs: Any) -> None:
        init(self, *args, **kwargs)
        _made.add(self)
        settings = _settings(self)
        if settings is not None:
            _attach(self, settings)

    return made


def _unless_passed_by(update_actor: Callable[..., Any]) -> Callable[..., Any]:
    """Say once of a trainer that was made past the class's own `__init__`, as asynchronous ones are: not captured."""

    @functools.wraps(update_actor)
    def updated(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self not in _made:
            _made.add(self)
            if _settings(self) is not None:
                log.warning(NOT_CAPTURED)
        return update_actor(self, *args, **kwargs)

    return updated


def _settings(trainer: Any) -> Any:
    """What the user set under `unipo`; None where that is nothing."""
    try:
        return trainer.config.get("unipo")
    except Exception:  # a trainer without a configuration of Hydra's
        return None


def _attach(trainer: Any, settings: Any) -> None:
    """Capture this trainer. What capture needs is loaded now; where it is not there, training goes on without."""
    try:
        from unipo_hooks.adapters.verl.trainer import attach
    except ImportError as error:
        missing = f"{error.name} is missing: pip install {error.name}" if error.name else str(error)
        log.warning("unipo-hooks: capture is off: %s. Training goes on.", missing)
    except Exception as error:  # a verl in which something has moved
        log.warning("unipo-hooks: capture is off: %s: %s. Training goes on.", type(error).__name__, error)
    else:
        attach(trainer, settings)


def _tell_what_will_fail() -> None:
    """Say in the process of the command what stands in the way: verl's own messages do not lead to the cause."""
    command = sys.orig_argv[: len(sys.orig_argv) - len(sys.argv[1:])]
    if any(name in word for name in OTHER_LAUNCHERS for word in command):
        log.warning(NOT_CAPTURED)
    if _trl_lacks_value_head():
        log.warning(
            "unipo-hooks: the TRL beside verl has no %s, which verl imports wherever TRL is installed: "
            "its workers will end with an ImportError. Give verl an environment without TRL: pip uninstall trl",
            VALUE_HEAD,
        )
    if _lacks_transfer_queue():
        log.warning(
            "unipo-hooks: TransferQueue is missing, and this trainer of verl imports it: pip install TransferQueue "
            "(or take the older trainer: trainer.use_v1=False)"
        )


def _lacks_transfer_queue() -> bool:
    """Whether the V1 trainer, the default of verl 0.9, is going to end with an ImportError."""
    if "trainer.use_v1=false" in (argument.lstrip("+").lower() for argument in sys.argv):
        return False
    roots = getattr(sys.modules.get("verl"), "__path__", ())
    has_v1 = any((Path(root) / "trainer" / "ppo" / "v1").is_dir() for root in roots)
    return has_v1 and importlib.util.find_spec("transfer_queue") is None


def _trl_lacks_value_head() -> bool:
    """Whether a TRL is installed that verl cannot import from. It is read, not imported."""
    try:
        spec = importlib.util.find_spec("trl")
        if spec is None or not spec.origin:
            return False
        package = Path(spec.origin).parent
        sources = (package / "__init__.py", package / "experimental" / "ppo" / "__init__.py")
        return not any(VALUE_HEAD in source.read_text(encoding="utf-8") for source in sources if source.exists())
    except (OSError, ValueError):
        return False
