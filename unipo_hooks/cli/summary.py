"""What `info` and `demo` tell of a bundle: facts as data, and facts as a table for people."""

from __future__ import annotations

import math
from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np

from unipo_hooks import algorithms
from unipo_hooks.bundle import layout
from unipo_hooks.bundle.check_files import damaged_segments
from unipo_hooks.bundle.entries import Entries
from unipo_hooks.bundle.files import Files, validate_command
from unipo_hooks.bundle.tables import COLUMNS
from unipo_hooks.cli.terminal import printable
from unipo_hooks.errors import BundleError
from unipo_hooks.schema import MetricsLine

if TYPE_CHECKING:
    from rich.table import Table

    from unipo_hooks.bundle.reader import Bundle
    from unipo_hooks.schema import Manifest

KEY_SETTINGS = ("clip_eps", "kl_coef", "group_size", "learning_rate", "loss_type", "num_iterations", "temperature")
"""Hyper-parameters shown to people, where the run has them; `--json` has them all."""

TOOL = 1
"""Value of the channel `mask_reason` for a token that a tool or environment wrote."""

BYTES_A_TOKEN = "segment files ÷ captured tokens, each counted once for every update that trained on it"
"""What `bytes_per_token` means."""


def summarise(bundle: Bundle) -> dict[str, Any]:
    """Facts of a bundle, JSON-able; what is unknown is None."""
    manifest = bundle.manifest
    updates, rollouts, metrics = bundle.updates(), bundle.rollouts(), bundle.metrics()
    update_tokens, rollout_tokens = _total(updates, "tokens"), _total(rollouts, "tokens")
    size = segment_bytes(bundle)
    tokens = update_tokens or rollout_tokens
    seen = metrics.num_rows
    incomplete = {"updates": _incomplete(updates, manifest), "rollouts": _incomplete(rollouts, manifest)}
    tenths = reward_by_tenth(bundle)
    return {
        "path": str(bundle.path),
        "version": manifest.version,
        "created": manifest.created,
        "status": manifest.status,
        "header": manifest.header.model_dump(),
        "trainer": manifest.trainer.model_dump(include={"library", "version", "trainer_class"}),
        "updates": {
            "seen": seen,
            "captured": updates.num_rows,
            "trained": _trained(bundle, seen, updates, incomplete["updates"]),
            "superseded": bundle.metrics(superseded=True).num_rows - seen if len(manifest.attempts) > 1 else 0,
        },
        "rollouts": rollouts.num_rows,
        "groups": _total(rollouts, "groups"),
        "responses": _total(rollouts, "responses"),
        "evaluations": bundle.metrics(kind="eval").num_rows,
        "tokens": {"rollout": rollout_tokens, "update": update_tokens, "tool": _tool_tokens(bundle)},
        "segment_bytes": size,
        "bytes_per_token": size / tokens if tokens else None,
        "bytes_per_token_means": BYTES_A_TOKEN,
        "channels": manifest.channels,
        "ranks": manifest.ranks,
        "incomplete": incomplete,
        "missing_ranks": _missing_ranks(updates, manifest) if incomplete["updates"] else {},
        "attempts": [attempt.model_dump() for attempt in manifest.attempts],
        "policy": manifest.policy,
        "lost": manifest.lost.model_dump(),
        "hook_ms_per_update": 1e3 * manifest.cost.hook_seconds / seen if seen else None,
        "writer_cpu_seconds": manifest.cost.writer_cpu_seconds,
        "reward": {"first_tenth": tenths[0], "last_tenth": tenths[-1]} if tenths else None,
        "responses_without_reward": _without_reward(bundle),
        "algorithm": _algorithm(manifest),
        "reconciled": reconciled(updates),
        "damaged": damaged_segments(bundle.path, manifest.ranks),
    }


def facts_table(facts: dict[str, Any]) -> Table:
    """The facts for people: a label and a value a row."""
    table = _grid()
    header, trainer, updates = facts["header"], facts["trainer"], facts["updates"]
    hparams = {name: _short(header["hparams"][name]) for name in KEY_SETTINGS if name in header["hparams"]}
    if hparams.get("loss_type", "").lower() == header["algorithm"].lower():  # once is enough
        hparams.pop("loss_type", None)
    settings = [f"{name} {value}" for name, value in hparams.items()]
    rows = [
        ("run", " · ".join(filter(None, (header["task"], header["model_name"], header["dataset"])))),
        ("trainer", f"{trainer['library']} {trainer['version']}, {trainer['trainer_class']}"),
        ("algorithm", ", ".join(filter(None, (_algorithm_name(facts), *settings)))),
        ("settings", "; ".join(facts["algorithm"]["notes"]) if facts["algorithm"] else ""),
        ("loss", _loss(facts)),
        ("status", _status(facts)),
        ("updates", f"{updates['captured']:,} captured of {updates['trained']:,} trained"),
        ("rollouts", f"{facts['rollouts']:,} captured, with {_count(facts['groups'], 'group')} and "
         f"{_count(facts['responses'], 'response')}"),
        ("evaluations", _count(facts["evaluations"], "batch", "batches") if facts["evaluations"] else ""),
        ("tokens", _tokens(facts["tokens"])),
        ("size", _size(facts)),
        ("damaged", _damaged(facts)),
        ("ranks", _ranks(facts)),
        ("attempts", _attempts(facts)),
        ("sampling", _sampling(facts["policy"])),
        ("lost", _lost(facts)),
        ("cost", _cost(facts)),
        ("reward", _reward(facts)),
        ("reward", _unrewarded(facts)),
    ]  # fmt: skip
    for label, value in rows:
        if value:
            table.add_row(label, printable(value))
    return table


def reconciled(updates: Any) -> dict[str, Any]:
    """How well the losses of captured updates (`Bundle.updates`) could be recomputed from their tokens."""
    passes = [each for row in updates.column("micro_batches").to_pylist() for each in row]
    # A gap that is not a number is null in JSON; its tolerance tells it from one that was never measured.
    compared = [each for each in passes if each["loss_tolerance"] is not None]
    gaps = [None if each["loss_gap"] is None else abs(each["loss_gap"]) for each in compared]
    token_gaps = [each["token_gap"] for each in compared if each["token_gap"] is not None]
    return {
        "micro_batches": len(passes),
        "compared": len(compared),
        "above_tolerance": sum(
            gap is None or gap > each["loss_tolerance"] for gap, each in zip(gaps, compared, strict=True)
        ),
        "not_a_number": sum(gap is None for gap in gaps),
        "largest_gap": max((gap for gap in gaps if gap is not None), default=None),
        "tolerance": min((each["loss_tolerance"] for each in compared), default=None),
        "largest_token_gap": max(token_gaps, default=None),
    }


def reward_by_tenth(bundle: Bundle) -> list[float]:
    """Mean reward in each tenth of the updates that have one; fewer numbers for fewer than ten updates."""
    rewards = _known(bundle.metrics(), "reward")
    tenths = np.array_split(np.array(rewards), min(10, len(rewards))) if rewards else []
    return [float(tenth.mean()) for tenth in tenths]


def demo_table(bundle: Bundle) -> Table:
    """What the demo shows of the run it made."""
    facts = summarise(bundle)
    table = _grid()
    rewards = " ".join(f"{reward:.2f}".removeprefix("0") for reward in reward_by_tenth(bundle))
    table.add_row("reward by tenth of the run", rewards)
    table.add_row("updates captured", f"{facts['updates']['captured']:,} of {facts['updates']['trained']:,}")
    table.add_row("tokens", f"{facts['tokens']['update']:,}")
    table.add_row("size", _size(facts))
    table.add_row("loss", _loss(facts))
    return table


def segment_bytes(bundle: Bundle) -> int:
    """Bytes of the bundle's segment files as they are on disk."""
    folder = bundle.path / layout.SEGMENTS
    return sum(path.stat().st_size for path in folder.glob("*.parquet")) if folder.is_dir() else 0


def _grid() -> Table:
    from rich.table import Table

    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    return table


def _total(table: Any, column: str) -> int:
    return int(sum(table.column(column).to_pylist()))


def _known(metrics: Any, name: str) -> list[float]:
    if name not in metrics.column_names:
        return []
    return [float(value) for value in metrics.column(name).to_pylist() if value is not None and math.isfinite(value)]


def _incomplete(table: Any, manifest: Manifest) -> int:
    """Rows that not all ranks of their attempt have written: one was killed, or is behind."""
    pairs = zip(table.column("attempt").to_pylist(), table.column("ranks").to_pylist(), strict=True)
    return sum(ranks < manifest.ranks_of(attempt) for attempt, ranks in pairs)


def _ranks(facts: dict[str, Any]) -> str:
    parts = [
        _count(facts["incomplete"][name], name[:-1]) for name in ("updates", "rollouts") if facts["incomplete"][name]
    ]
    if not parts:
        return f"{facts['ranks']}"
    who = (
        ": " + " and ".join(f"rank {rank} is missing" for rank in facts["missing_ranks"])
        if facts["missing_ranks"]
        else ""
    )
    return f"{facts['ranks']}; of {' and '.join(parts)} not every rank's part is there{who}"


def _missing_ranks(updates: Any, manifest: Manifest) -> dict[int, int]:
    """In how many captured updates each rank is missing that should be there."""
    missing: Counter[int] = Counter()
    for row in updates.select(["attempt", "micro_batches"]).to_pylist():
        there = {part["rank"] for part in row["micro_batches"]}
        missing.update(set(range(manifest.ranks_of(row["attempt"]))) - there)
    return dict(sorted(missing.items()))


def _trained(bundle: Bundle, seen: int, updates: Any, incomplete: int) -> int:
    """Updates the trainer made: those with metrics, and those that were lost before even these were written."""
    lost = bundle.manifest.lost.updates
    if not lost:
        return seen
    lines = Entries(Files(bundle.path), bundle.manifest).metrics("train", superseded=False)
    announced = {line.update for line, _ in lines if isinstance(line, MetricsLine) and line.captured}
    # Of these something is there: the metrics, or what another rank captured.
    known = len(announced.difference(updates.column("update").to_pylist())) + incomplete
    trained = seen + max(0, lost - known)
    total = bundle.header.totalSteps
    return max(seen, min(trained, total)) if total else trained


def _tool_tokens(bundle: Bundle) -> int | None:
    """Stored tokens of training that tools wrote into responses; None where their files cannot be read."""
    if "mask_reason" not in bundle.manifest.channels:
        return 0
    files = Files(bundle.path)
    columns = {name: COLUMNS[layout.ROLLOUT_TOKENS][name] for name in ("row", "mask_reason")}
    found = 0
    try:
        for item in Entries(files, bundle.manifest).rollouts("train", superseded=False):
            if item.line.tokens[1] > item.line.tokens[0]:
                (rows,) = files.rows(item.line.segment, layout.ROLLOUT_TOKENS, [item.line.tokens], columns)
                if "mask_reason" in rows.column_names:
                    found += int(np.count_nonzero(rows["mask_reason"].to_numpy() == TOOL))
    except BundleError:  # said under `damaged`
        return None
    return found


def _tokens(tokens: dict[str, Any]) -> str:
    rollout, tool = tokens["rollout"], tokens["tool"]
    own = f", {rollout - tool:,} of them the model's" if tool else ""
    return f"{rollout:,} in responses{own}, {tokens['update']:,} over all updates"


def _short(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _count(number: int, noun: str, plural: str = "") -> str:
    return f"{number:,} {noun if number == 1 else plural or f'{noun}s'}"


def _status(facts: dict[str, Any]) -> str:
    started = f"started {facts['created']}"
    if facts["status"] != "running":
        return f"{facts['status']}, {started}"
    total = facts["header"]["totalSteps"]
    how_far = f", {facts['updates']['seen']:,} of {total:,} updates so far" if total else ""
    return f"running, or killed{how_far}, {started}"


def _size(facts: dict[str, Any]) -> str:
    size, each = facts["segment_bytes"], facts["bytes_per_token"]
    text = _bytes(size)
    return text if each is None else f"{text}, {each:.1f} bytes a token"


def _bytes(size: float) -> str:
    unit, name = next(((u, n) for u, n in ((1e9, "GB"), (1e6, "MB")) if size >= u), (1e3, "kB"))
    return f"{size / unit:.1f} {name}"


def _binary(size: float) -> str:
    """Bytes as people set limits: in powers of 1024, in whole numbers of them where they are whole."""
    unit, name = next(((1 << n, u) for n, u in ((30, "GiB"), (20, "MiB"), (10, "KiB")) if size >= 1 << n), (1, "bytes"))
    return f"{round(size / unit, 1):g} {name}"


def _damaged(facts: dict[str, Any]) -> str:
    files = facts["damaged"]
    if not files:
        return ""
    return f"{_count(len(files), 'segment file')} (first: {files[0]}); run {validate_command(facts['path'])}"


def _sampling(policy: dict[str, Any]) -> str:
    """Limits that are set; `max_bytes` in words."""
    limits = {name: _binary(value) if name == "max_bytes" else value for name, value in policy.items() if value}
    return ", ".join(f"{name} {_short(value)}" for name, value in limits.items())


def _attempts(facts: dict[str, Any]) -> str:
    attempts, hidden = facts["attempts"], facts["updates"]["superseded"]
    if len(attempts) == 1:
        return "1"
    starts = ", ".join(f"from update {attempt['first_update']}: {attempt['status']}" for attempt in attempts)
    done_again = f"; {_count(hidden, 'update')} done again later and hidden" if hidden else ""
    return f"{len(attempts)} ({starts}{done_again})"


def _algorithm(manifest: Manifest) -> dict[str, Any] | None:
    if manifest.algorithm is None:
        return None
    spec = manifest.algorithm
    return {
        "id": spec.get("id"),
        "name": spec.get("name"),
        "parent": spec.get("parent"),
        "exact": bool(spec.get("exact")) and bool(algorithms.confirmations(str(spec.get("id")))),
        "notes": [note for attempt in manifest.attempts for note in attempt.algorithm_notes],
        "registered": [each.get("id") for each in manifest.algorithms],
    }


def _algorithm_name(facts: dict[str, Any]) -> str:
    """The algorithm by a name `unipo-hooks algorithms show` knows, or by what it is and the nearest that it knows."""
    spec = facts["algorithm"]
    if spec is None:
        return str(facts["header"]["algorithm"])
    known = algorithms.ids()
    if spec["id"] in known:
        return str(spec["id"])
    see = f" (see unipo-hooks algorithms show {spec['parent']})" if spec["parent"] in known else ""
    return f"{spec['name'] or spec['id']}{see}"


def _loss(facts: dict[str, Any]) -> str:
    found = facts["reconciled"]
    if not found["compared"]:
        return "not recomputed" if found["micro_batches"] else ""
    passes = f"{found['compared']:,} forward pass{'' if found['compared'] == 1 else 'es'}"
    if found["not_a_number"]:
        return f"not a number in {found['not_a_number']:,} of {passes}"
    if found["above_tolerance"]:
        return (
            f"NOT the trainer's in {found['above_tolerance']:,} of {passes}: "
            f"recomputed from the tokens it is up to {found['largest_gap']:.1e} away"
        )
    return (
        f"recomputed from the tokens it is the trainer's: largest gap {found['largest_gap']:.1e} "
        f"(tolerance {found['tolerance']:.0e}) in {passes}"
    )


def _lost(facts: dict[str, Any]) -> str:
    lost = facts["lost"]
    parts = [_count(lost[name], name.removesuffix("s")) for name in ("rollouts", "updates", "tokens") if lost[name]]
    if lost["evaluations"]:
        parts.append(_count(lost["evaluations"], "evaluation batch", "evaluation batches"))
    if lost["bytes"]:
        parts.append(f"{_bytes(lost['bytes'])} of records")
    if parts:
        return ", ".join(parts) + (f": {lost['reason']}" if lost["reason"] else "")
    missing = [f"rank {rank} in {_count(n, 'update')}" for rank, n in facts["missing_ranks"].items()]
    return f"nothing that was counted, but there is nothing of {' and '.join(missing)}" if missing else "nothing"


def _cost(facts: dict[str, Any]) -> str:
    each = facts["hook_ms_per_update"]
    hooks = "" if each is None else f"{each:.2f} ms an update in the hooks, "
    return f"{hooks}{facts['writer_cpu_seconds']:.1f} s of CPU on the writing thread"


def _reward(facts: dict[str, Any]) -> str:
    reward = facts["reward"]
    if not reward:
        return ""
    part = "tenth of the run" if facts["updates"]["seen"] >= 10 else "update"
    return f"mean {reward['first_tenth']:.3f} in the first {part}, {reward['last_tenth']:.3f} in the last"


def _unrewarded(facts: dict[str, Any]) -> str:
    missing = facts["responses_without_reward"]
    if not missing:
        return ""
    verb = "has" if missing == 1 else "have"
    return f"{missing:,} of {_count(facts['responses'], 'response')} {verb} no reward"


def _without_reward(bundle: Bundle) -> int | None:
    """Responses of captured rollouts whose reward is not a number; None where their files cannot be read."""
    try:
        rewards = bundle.responses().column("reward").to_numpy()
    except BundleError:  # said under `damaged`
        return None
    return int(np.count_nonzero(~np.isfinite(rewards)))
