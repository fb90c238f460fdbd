"""A Python that has imported torch and the like already: what is run with it is forked, and starts in milliseconds.

A run of verl's is ten processes, and each spends five seconds on imports before it does anything. Only other people's
libraries are imported beforehand; verl, its plugins and what is tested are imported by each process itself, in its
own environment. Called by `runs` through a socket, and by Ray (`py_executable`) through `warm_python`.
"""

from __future__ import annotations

import array
import gc
import json
import os
import random
import runpy
import select
import signal
import socket
import sys
import traceback
from importlib import import_module
from pathlib import Path

LIBRARIES = (
    "numpy",
    "pandas",
    "pyarrow.parquet",
    "datasets",
    "tensordict",
    "zmq",
    "msgspec",
    "cachetools",
    "codetiming",
    "torch",
    "torch._dynamo",
    "torch.distributed.fsdp",
    "torch.distributed.checkpoint",
    "torchdata.stateful_dataloader",
    "transformers",
    "transformers.generation",
    "transformers.modeling_utils",
    "transformers.models.auto.modeling_auto",
    "transformers.models.auto.tokenization_auto",
    "transformers.models.qwen2.modeling_qwen2",
    "peft",
    "accelerate",
    "hydra",
    "omegaconf",
    "fastapi",
    "uvicorn",
    "tqdm",
)
"""Not ray: it reads its settings from the environment when it is imported."""


def _execute(words: list[str]) -> None:
    """As `python` would: `-m module ...` or `[-options] script ...`."""
    while words and words[0].startswith("-") and words[0] != "-m":
        words = words[1:]
    if words[0] == "-m":
        sys.argv = words[1:]
        sys.path.insert(0, os.getcwd())
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = words
        sys.path.insert(0, str(Path(words[0]).parent))
        runpy.run_path(words[0], run_name="__main__")


def _become(request: dict, descriptors: list[int]) -> None:
    """In the child: take the caller's environment, folder and streams, run, and end."""
    for number, descriptor in enumerate(descriptors):
        os.dup2(descriptor, number)
        os.close(descriptor)
    os.setsid()
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["env"])
    Path(os.environ["VERL_CPU_PIDS"], str(os.getpid())).touch()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.path[:] = [*filter(None, request["env"].get("PYTHONPATH", "").split(os.pathsep)), *sys.path]
    random.seed()
    import_module("numpy").random.seed()
    status = 1
    try:
        _execute(request["words"])
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
    finally:
        exit_handlers = import_module("atexit")._run_exitfuncs
        exit_handlers()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _accept(listening: socket.socket, children: dict[int, socket.socket]) -> None:
    """One more process, for whom the caller waits."""
    caller, _ = listening.accept()
    data, descriptors = b"", array.array("i")
    while not data.endswith(b"\n"):
        part, ancillary, *_ = caller.recvmsg(1 << 20, socket.CMSG_SPACE(3 * descriptors.itemsize))
        if not part:
            caller.close()
            return
        for _, _, payload in ancillary:
            descriptors.frombytes(payload)
        data += part
    pid = os.fork()
    if pid == 0:
        listening.close()
        for other in (*children.values(), caller):
            other.close()
        _become(json.loads(data), list(descriptors))
    for descriptor in descriptors:
        os.close(descriptor)
    caller.sendall(b"%d\n" % pid)
    children[pid] = caller


def _reap(children: dict[int, socket.socket]) -> None:
    """Tell callers whose process has ended how it did."""
    while children:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid == 0:
            return
        with children.pop(pid) as caller:
            try:
                caller.sendall(b"%d\n" % os.waitstatus_to_exitcode(status))
            except OSError:  # gone before its process
                continue


def serve(path: str) -> None:
    """Listen at `path` until standard input ends. A process whose caller goes away is killed."""
    sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != Path(__file__).parent]
    for name in LIBRARIES:
        try:
            import_module(name)
        except ImportError:  # another version has it not
            continue
    gc.collect()
    gc.freeze()
    children: dict[int, socket.socket] = {}
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(path)
        listening.listen(64)
        print("ready", flush=True)
        while True:
            ready = select.select([listening, sys.stdin, *children.values()], [], [], 0.02)[0]
            if sys.stdin in ready:
                break
            for pid, caller in children.items():
                if caller in ready:
                    os.kill(pid, signal.SIGKILL)
            if listening in ready:
                _accept(listening, children)
            _reap(children)
    for pid in children:
        os.kill(pid, signal.SIGKILL)


if __name__ == "__main__":
    serve(sys.argv[1])
