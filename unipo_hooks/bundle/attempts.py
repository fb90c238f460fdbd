"""Which folder a start of the trainer writes to: a new one, or on with the one its run began in."""

from __future__ import annotations

import json
import logging
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from unipo_hooks.bundle import layout
from unipo_hooks.bundle.earlier import updates_until
from unipo_hooks.bundle.files import version_problem
from unipo_hooks.bundle.writer import BundleWriter
from unipo_hooks.errors import BundleError
from unipo_hooks.policy import CapturePolicy
from unipo_hooks.record import RunInfo
from unipo_hooks.schema import Attempt, Joined, Manifest, RankFile

log = logging.getLogger("unipo_hooks")


def open_writer(path: Path, run: RunInfo, policy: CapturePolicy, joined: Joined | None = None) -> BundleWriter:
    """A writer for this start of the run: in a new folder, or in the old one where the run resumes.

    `joined`: what rank 0 found, on any other rank. The folder has then the name rank 0 says, beside `path`.

    Raises BundleError, one clear line, where the folder cannot be written to or continued.
    """
    if re.match(r"[A-Za-z][\w+.-]+:/", str(path)):
        raise BundleError(f"{path} is an address; bundles are written to local folders, to be copied from there")
    try:
        if joined is not None:
            return _join(path.with_name(joined.folder), run, policy, joined)
        found = _of_this_run(path, run) if run.first_update else None
        taken, reason = path, "is a file" if path.is_file() else "holds another run"
        if found is not None:
            try:
                if run.steps_before is not None:
                    counted = updates_until(found[0], found[1].attempts, run.steps_before)
                    run = replace(run, first_update=counted or run.first_update)
                return BundleWriter(found[0], _continued(found[1], run, policy), rank=run.rank)
            except (ValueError, KeyError):
                taken, reason = found[0], f"is damaged (see unipo-hooks validate {found[0]})"
        folder = claim_folder(path)
        if folder != path:
            log.warning("unipo-hooks: %s %s; this run goes to %s", taken, reason, folder)
        try:
            return BundleWriter(folder, _new(run, policy), rank=run.rank)
        except OSError:
            shutil.rmtree(folder, ignore_errors=True)  # claimed a moment ago, and of no use to the next run
            raise
    except OSError as error:
        raise BundleError(f"cannot write to {path}: {error.strerror or error}") from error


def _join(folder: Path, run: RunInfo, policy: CapturePolicy, joined: Joined) -> BundleWriter:
    """A writer for a rank above 0. Nodes may share no file system: the folder need not be there."""
    own, index = folder / layout.rank_name(run.rank), folder / layout.index_name(run.rank)
    known = RankFile.model_validate_json(own.read_text(encoding="utf-8")) if own.exists() else None
    if known is not None and known.created != joined.created:
        known = None
    if known is None and index.exists() and index.stat().st_size:
        raise BundleError(f"{folder} holds another run of rank {run.rank}")
    if _has_ended(folder / layout.MANIFEST, joined.attempt):
        raise BundleError(f"{folder} is of a run that has ended; make the callback on every rank, in the same order")
    manifest = _new(run, policy).model_copy(
        update={
            "created": joined.created,
            "attempts": [_attempt(joined.attempt, run)],
            **({} if known is None else {name: getattr(known, name) for name in ("channels", "lost", "cost")}),
        }
    )
    return BundleWriter(folder, manifest, rank=run.rank, earlier=joined.earlier)


def _has_ended(path: Path, attempt: int) -> bool:
    """Whether a manifest says that an attempt has ended. A network disk may still show an older one, or none."""
    if not path.exists():
        return False
    manifest = Manifest.model_validate_json(path.read_text(encoding="utf-8"))
    return any(each.attempt == attempt and each.status != "running" for each in manifest.attempts)


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


def interrupt(writer: BundleWriter) -> None:
    """End an attempt that cannot begin. Raises OSError where that cannot be written either."""
    attempts = end_attempt(writer.manifest.attempts, status="interrupted")
    writer.update_manifest(status="interrupted", attempts=attempts)
    writer.write_manifest()
    writer.close()


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
        if version_problem(json.loads(text)) is None and _is_of(manifest, run) and _has_trained(candidate):
            newest = (candidate, manifest)
    return newest


def _has_trained(folder: Path) -> bool:
    """Whether a bundle has more than evaluations: these alone are not what a run resumes."""
    try:
        with (folder / layout.metrics_name(0)).open("rb") as lines:
            return any(b'"kind":"eval"' not in line for line in lines)
    except OSError:
        return False


def _is_of(manifest: Manifest, run: RunInfo) -> bool:
    """Whether a bundle is of the run that resumes. Its algorithm may be another: every attempt has its own."""
    then, now = _identity(manifest), _identity(_new(run, CapturePolicy()))
    if run.reward_names_found:  # in a first batch, and that of another start may have said others
        then, now = then[:-1], now[:-1]
    before, output = (Path(each.get("output_dir") or "") for each in (manifest.trainer.settings, run.trainer.settings))
    # A relative name is one in a working directory that is not known any more.
    names = output.absolute().parts
    return then == now and names[len(names) - len(before.parts) :] == before.parts


def _identity(manifest: Manifest) -> tuple[object, ...]:
    header = manifest.header
    return header.dataset, header.model_name, manifest.trainer.library, manifest.reward_names


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
        ranks=run.ranks,
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
