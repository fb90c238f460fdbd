"""What ranks above 0 say of themselves, and the manifest with it: `manifest.json` speaks of rank 0 alone."""

from __future__ import annotations

from collections.abc import Sequence

from unipo_hooks.bundle import layout
from unipo_hooks.bundle.files import Files, problem, reason, validate_hint
from unipo_hooks.errors import BundleError
from unipo_hooks.schema import Attempt, Cost, Lost, Manifest, RankFile

SHARED = ("rollouts", "updates", "evaluations", "reconciliations")
"""What all ranks take part in: several that lost one of them lost the same one."""


def read_ranks(files: Files, manifest: Manifest) -> list[RankFile]:
    """What each rank above 0 of the manifest's run says. Raises BundleError where a file cannot be read."""
    found = []
    for rank in range(1, manifest.ranks):
        name = layout.rank_name(rank)
        try:
            said = RankFile.model_validate_json(files.read(name))
        except FileNotFoundError:
            continue
        except OSError as error:
            raise BundleError(f"cannot read {files.root / name}: {reason(error)}") from error
        except ValueError as error:
            hint = validate_hint(files.root)
            raise BundleError(f"{files.root / name}: {problem(error)}; {hint}") from error
        if said.created == manifest.created:
            found.append(said)
    return found


def of_all_ranks(manifest: Manifest, others: Sequence[RankFile]) -> Manifest:
    """The manifest as if one rank had written all of it.

    Tokens and bytes are added up. Ranks share their rollouts and updates and wait for each other, so of those that were
    lost, and of the time in the hooks, the largest counts.
    The run goes on while any rank of its newest attempt does.
    """
    if not others or not manifest.attempts:
        return manifest
    newest = [each for each in others if each.attempt == manifest.attempts[-1].attempt]
    stati = {manifest.status, *(each.status for each in newest)}
    return manifest.model_copy(
        update={
            "status": next(each for each in ("running", "interrupted", "finished") if each in stati),
            "channels": list(dict.fromkeys((*manifest.channels, *(name for each in others for name in each.channels)))),
            "attempts": _noted(manifest.attempts, newest),
            "lost": _lost(manifest.lost, others),
            "cost": _cost([manifest.cost, *(each.cost for each in others)]),
        }
    )


def _noted(attempts: list[Attempt], others: Sequence[RankFile]) -> list[Attempt]:
    notes = [*attempts[-1].algorithm_notes, *(note for each in others for note in each.algorithm_notes)]
    return [*attempts[:-1], attempts[-1].model_copy(update={"algorithm_notes": list(dict.fromkeys(notes))})]


def _lost(own: Lost, others: Sequence[RankFile]) -> Lost:
    reasons = [own.reason, *(f"rank {each.rank}: {each.lost.reason}" for each in others if each.lost.reason)]
    all_lost = [own, *(each.lost for each in others)]
    return Lost(
        **{name: max(getattr(each, name) for each in all_lost) for name in SHARED},
        **{name: sum(getattr(each, name) for each in all_lost) for name in ("tokens", "bytes")},
        reason="; ".join(filter(None, reasons)) or None,
    )


def _cost(costs: list[Cost]) -> Cost:
    return Cost(
        hook_seconds=max(each.hook_seconds for each in costs),
        writer_cpu_seconds=sum(each.writer_cpu_seconds for each in costs),
        segment_bytes=sum(each.segment_bytes for each in costs),
    )
