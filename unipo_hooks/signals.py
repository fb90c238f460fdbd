"""SIGTERM while a trainer runs: what is queued reaches the disk before the process ends.

Python leaves SIGTERM to the system, which ends a process at once: no `atexit`, and the last seconds of a run are lost.
"""

from __future__ import annotations

import _thread
import os
import signal
import threading
from types import FrameType
from weakref import WeakSet

from unipo_hooks.recorder import close_all

_watching: WeakSet[object] = WeakSet()
_forking = threading.local()


def watch(owner: object) -> None:
    """Until `unwatch(owner)`, have SIGTERM wait for the disk, `EXIT_SECONDS` at most; it then ends the process as ever.

    A handler of someone else's is left alone. Those that launchers and trainers set end the process in an orderly way,
    so that `atexit` writes what is queued, and one that does not would not pass the signal on either. Python lets the
    main thread alone set handlers: a trainer on another thread goes without.
    """
    _watching.add(owner)
    if _on_main_thread() and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, _terminated)


def unwatch(owner: object) -> None:
    """Leave SIGTERM to the system again, where nobody else watches and nobody has set a handler since."""
    _watching.discard(owner)
    if not _watching and _on_main_thread() and signal.getsignal(signal.SIGTERM) is _terminated:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _on_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


def _terminated(number: int, _: FrameType | None) -> None:
    # Takes no lock: the code that was interrupted may hold any. It goes on while another thread waits for the disk.
    signal.signal(number, signal.SIG_DFL)  # a second signal ends the process at once
    try:
        _thread.start_new_thread(_end_process, (number,))
    except RuntimeError:  # the interpreter is shutting down
        os.kill(os.getpid(), number)


def _end_process(number: int) -> None:
    try:
        close_all()
    finally:
        os.kill(os.getpid(), number)


# Python forgets a signal that reaches a process while it is being forked: a child told to end at once would not. So
# SIGTERM waits until the child has the system's handling again.


def _before_fork() -> None:
    ours = signal.getsignal(signal.SIGTERM) is _terminated
    _forking.mask = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM]) if ours else None


def _after_fork(*, in_child: bool) -> None:
    if _forking.mask is not None:
        if in_child:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, _forking.mask)


os.register_at_fork(
    before=_before_fork,
    after_in_parent=lambda: _after_fork(in_child=False),
    after_in_child=lambda: _after_fork(in_child=True),
)
