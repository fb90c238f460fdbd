"""SIGTERM while a trainer runs: what is queued reaches the disk before the process ends.

Python leaves SIGTERM to the system, which ends a process at once: no `atexit`, and the last seconds of a run are lost.
Handlers of Python's run on the main thread, between two of its instructions: not while that thread is within a
collective whose other ranks are gone, just where a launcher sends SIGTERM. Python also writes the number of the signal
to a descriptor, and that at once (`signal.set_wakeup_fd`): a thread that reads it ends the process then.
"""

from __future__ import annotations

import _thread
import contextlib
import ctypes
import os
import signal
import threading
from types import FrameType
from weakref import WeakSet

from unipo_hooks.recorder import close_all

_watching: WeakSet[object] = WeakSet()
_forking = threading.local()
_ending = threading.Lock()
_pipe: tuple[int, int] | None = None
"""What signals are heard on. It stays open: a handler on another thread may be about to write to it."""
_listening = False

_set_system_handler = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p)(
    ("PyOS_setsig", ctypes.pythonapi)
)
"""`signal.signal`, for threads other than the main one; its second argument None is SIG_DFL."""


def watch(owner: object) -> None:
    """Until `unwatch(owner)`, have SIGTERM wait for the disk, `EXIT_SECONDS` at most; it then ends the process as ever.

    A handler of someone else's is left alone. Those that launchers and trainers set end the process in an orderly way,
    so that `atexit` writes what is queued, and one that does not would not pass the signal on either. Python lets the
    main thread alone set handlers: a trainer on another thread goes without.
    """
    _watching.add(owner)
    if _on_main_thread() and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        _listen()
        signal.signal(signal.SIGTERM, _terminated)


def unwatch(owner: object) -> None:
    """Leave SIGTERM to the system again, where nobody else watches and nobody has set a handler since."""
    _watching.discard(owner)
    if not _watching and _on_main_thread():
        if signal.getsignal(signal.SIGTERM) is _terminated:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
        _stop_listening()


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
    if _ending.acquire(blocking=False):  # both threads may get here
        try:
            close_all()
        finally:
            os.kill(os.getpid(), number)


def _listen() -> None:
    global _pipe, _listening
    if _pipe is None:
        _pipe = os.pipe()
        os.set_blocking(_pipe[1], False)  # Python asks for it
    _wake(_pipe[1])
    if not _listening:
        _thread.start_new_thread(_hear, (_pipe[0],))
        _listening = True


def _stop_listening() -> None:
    global _listening
    if _pipe is not None and _listening:
        _wake(-1)
        os.write(_pipe[1], b"\0")
        _listening = False


def _wake(descriptor: int) -> None:
    """Have Python write signals to a descriptor; where it does to someone else's, asyncio's perhaps, that stays."""
    assert _pipe is not None
    before = signal.set_wakeup_fd(descriptor, warn_on_full_buffer=False)
    if before not in (-1, _pipe[1]):
        with contextlib.suppress(OSError, ValueError):  # closed meanwhile
            signal.set_wakeup_fd(before)


def _hear(descriptor: int) -> None:
    while number := os.read(descriptor, 1)[0]:
        # Whoever has set a handler since has it called. Once ours has been, it does the rest.
        if number == signal.SIGTERM and signal.getsignal(number) is _terminated:
            _set_system_handler(number, None)
            _end_process(number)


# Python forgets a signal that reaches a process while it is being forked: a child told to end at once would not. So
# SIGTERM waits until the child has the system's handling again. The child's signals are none of the parent's, whose
# pipe it has.


def _before_fork() -> None:
    ours = signal.getsignal(signal.SIGTERM) is _terminated
    _forking.mask = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM]) if ours else None


def _after_fork_in_parent() -> None:
    if _forking.mask is not None:
        signal.pthread_sigmask(signal.SIG_SETMASK, _forking.mask)


def _after_fork_in_child() -> None:
    global _ending, _pipe, _listening
    _ending = threading.Lock()
    if _pipe is not None:
        _wake(-1)
        for descriptor in _pipe:
            os.close(descriptor)
        _pipe, _listening = None, False
    if _forking.mask is not None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, _forking.mask)


os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child)
