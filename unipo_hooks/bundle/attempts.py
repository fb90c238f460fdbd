"""Which folder a start of the trainer writes to: a new one, or on with the one its run began in."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from unipo_hooks.bundle import layout
from unipo_hooks.bundle.files import version_problem
from unipo_hooks.bundle.writer import BundleWriter
from unipo_hooks.errors import BundleError
from unipo_hooks.policy import CapturePolicy
from unipo_hooks.record import RunInfo
from unipo_hooks.schema import Attempt, Manifest

log = logging.getLogger("unipo_hooks")


def open_writer(path: Path, run: RunInfo, policy: CapturePolicy) -> BundleWriter:
    """A writer for this start of the run: in a new folder, or in the old one where the run resumes.

    Raises BundleError, one clear line, where the folder cannot be written to or continued.
    """
    if re.match(r"[A-Za-z][\w+.-]+:/", str(path)):
        raise BundleError(f"{path} is an address; bundles are written to local folders, to be copied from there")
    try:
        found = _of_this_run(path, run) if run.first_update else None
        if found is not None:
            return BundleWriter(found[0], _continued(found[1], run, policy), rank=run.rank)
        was_file = path.is_file()
        folder = claim_folder(path)
        if folder != path:
            reason = "is a file" if was_file else "holds another run"
            log.warning("unipo-hooks: %s %s; this run goes to %s", path, reason, folder)
        return BundleWriter(folder, _new(run, policy), rank=run.rank)
    except OSError as error:
        raise BundleError(f"cannot write to {path}: {error.strerror or error}") from error
    except (ValueError, KeyError) as error:
        raise BundleError(f"cannot continue {path}: it is damaged (see unipo-hooks validate {path})") from error


def claim_folder(path: Path) -> Path:
    """Make and return a folder for a new run: `path`, or the first of `path-2`, `path-3`, … that holds no other.

    Whoever makes its `segments` folder has claimed it, so that two runs that start together do not share one. A path
    that is a file is left alone. Raises OSError where no folder can be made.
    """
    for candidate in _names(path):
        if candidate.is_file() or (candidate / layout.MANIFEST).exists():
            continue
        try:
            (candidate / layout.SEGMENTS).mkdir(parents=True)
        except FileExistsError:
            continue
        return candidate
    raise AssertionError("names do not end")


def end_attempt(
    attempts: list[Attempt], *, status: Literal["finished", "interrupted"], ended: str | None = None
) -> list[Attempt]:
    """The attempts with the last one ended, now unless told otherwise."""
    return [*attempts[:-1], attempts[-1].model_copy(update={"status": status, "ended": ended or _now()})]


def _names(path: Path) -> Iterator[Path]:
    yield path
    number = 2
    while True:
        yield path.with_name(f"{path.name}-{number}")
        number += 1


def _of_this_run(path: Path, run: RunInfo) -> tuple[Path, Manifest] | None:
    """The newest bundle at `path` or beside it that a run with the same model, data, rewards and output folder made."""
    newest = None
    for candidate in _names(path):
        if not candidate.exists():
            return newest
        try:
            text = (candidate / layout.MANIFEST).read_text(encoding="utf-8")
            manifest = Manifest.model_validate_json(text)
        except (OSError, ValueError):
            continue
        if version_problem(json.loads(text)) is None and _identity(manifest) == _identity(_new(run, CapturePolicy())):
            newest = (candidate, manifest)
    return newest


def _identity(manifest: Manifest) -> tuple[object, ...]:
    header = manifest.header
    output = manifest.trainer.settings.get("output_dir")
    return (
        header.algorithm,
        header.dataset,
        header.model_name,
        manifest.trainer.library,
        manifest.reward_names,
        output,
    )


def _new(run: RunInfo, policy: CapturePolicy) -> Manifest:
    return Manifest(
        created=_now(),
        header=run.header,
        trainer=run.trainer,
        ranks=run.ranks,
        reward_names=list(run.reward_names),
        policy=policy.model_dump(),
        algorithms=[spec.model_dump(exclude_defaults=True) for spec in run.algorithms],
        attempts=[_attempt(0, run)],
    )


def _attempt(number: int, run: RunInfo) -> Attempt:
    return Attempt(
        attempt=number,
        started=_now(),
        first_update=run.first_update,
        algorithm=None if run.algorithm is None else run.algorithm.model_dump(exclude_defaults=True),
        algorithm_notes=list(run.algorithm_notes),
        reward_weights=list(run.reward_weights),
    )


def _continued(earlier: Manifest, run: RunInfo, policy: CapturePolicy) -> Manifest:
    """The manifest with one more attempt. One that still says it runs was killed."""
    attempts = [
        attempt.model_copy(update={"status": "interrupted"}) if attempt.status == "running" else attempt
        for attempt in earlier.attempts
    ]
    this = _attempt(len(attempts), run)
    fresh = _new(run, policy)
    return earlier.model_copy(
        update={
            **{name: getattr(fresh, name) for name in ("status", "header", "trainer", "policy", "algorithms")},
            "attempts": [*attempts, this],
            "ranks": max(earlier.ranks, run.ranks),
        }
    )


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
