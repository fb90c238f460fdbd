"""A bundle that several ranks wrote: what each says of itself, and what one has and another lacks."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import records
from bundle.builder import Builder, attempt, response, token

from unipo_hooks import algorithms, evaluate
from unipo_hooks.bundle import layout
from unipo_hooks.bundle.reader import open_bundle
from unipo_hooks.bundle.verify import verify
from unipo_hooks.errors import BundleError
from unipo_hooks.objective.inputs import Batch, Normalisers
from unipo_hooks.objective.recorded import as_recorded
from unipo_hooks.record import CapturedMicroBatch
from unipo_hooks.recorder import Recorder

SPEC = algorithms.get("dapo.verl")
CREATED = "2026-01-01T00:00:00Z"


def of_two_ranks(path: Path, **said) -> Path:
    """Rollout 0 with a group on two ranks, and an update on it; rank 1 says of itself what is given."""
    built = Builder(path, ranks=2, channels=["ids", "log_probs"], cost={"hook_seconds": 2.0, "segment_bytes": 10})
    for rank in (0, 1):
        rows = [response(row, [token(10 * rank + row)], reward=float(rank)) for row in range(2)]
        built.rollout(0, rows, rank=rank, groups=1)
        built.update(0, [(0, row) for row in rows], rank=rank)
        built.metrics(0, {"reward": [2.0 * rank, 2.0, 2.0 * rank]}, rank=rank)
    built.write()
    if said:
        defaults = {"created": CREATED, "rank": 1, "attempt": 0, "status": "finished"}
        (path / layout.rank_name(1)).write_text(json.dumps(defaults | said))
    return path


def sentences(path):
    return [f"{fault.severity}: {fault}" for fault in verify(path)]


def test_what_a_rank_lost_and_what_it_cost_is_added_to_the_manifest(tmp_path):
    lost = {"updates": 2, "tokens": 5, "reason": "the queue was full"}
    cost = {"hook_seconds": 3.0, "writer_cpu_seconds": 1.0, "segment_bytes": 5}
    path = of_two_ranks(tmp_path, lost=lost, cost=cost, channels=["ids", "entropies"], algorithm_notes=["own code"])
    manifest = open_bundle(path).manifest
    assert (manifest.lost.updates, manifest.lost.tokens) == (2, 5)
    assert manifest.lost.reason == "rank 1: the queue was full"
    assert manifest.cost.model_dump() == {"hook_seconds": 3.0, "writer_cpu_seconds": 1.0, "segment_bytes": 15}
    assert manifest.channels == ["ids", "log_probs", "entropies"]
    assert manifest.algorithm_notes == ["own code"]
    assert sentences(path) == []


def test_what_several_ranks_lost_of_the_same_updates_is_counted_once(tmp_path):
    path = of_two_ranks(tmp_path, lost={"rollouts": 1, "updates": 4, "evaluations": 2, "tokens": 5, "bytes": 10})
    manifest = json.loads((path / layout.MANIFEST).read_text())
    manifest["lost"] = {"rollouts": 2, "updates": 4, "tokens": 7, "bytes": 1}
    (path / layout.MANIFEST).write_text(json.dumps(manifest))
    lost = open_bundle(path).manifest.lost
    assert (lost.rollouts, lost.updates, lost.evaluations, lost.tokens, lost.bytes) == (2, 4, 2, 12, 11)


@pytest.mark.parametrize(
    ("said", "together"),
    [
        ({"status": "running"}, "running"),
        ({"status": "interrupted"}, "interrupted"),
        ({"status": "finished"}, "finished"),
        ({"status": "running", "attempt": 7}, "finished"),
        ({}, "finished"),
    ],
)
def test_a_run_goes_on_while_any_rank_of_its_newest_attempt_does(tmp_path, said, together):
    assert open_bundle(of_two_ranks(tmp_path, **said)).manifest.status == together


def test_a_group_on_two_ranks_is_one_group(tmp_path):
    (group,) = open_bundle(of_two_ranks(tmp_path)).groups().to_pylist()
    assert (group["size"], group["reward_mean"]) == (4, 0.5)
    assert group["reward_std"] == pytest.approx((1 / 3) ** 0.5)


def test_what_another_run_left_is_not_read_and_is_a_fault(tmp_path):
    path = of_two_ranks(tmp_path, created="2025-01-01T00:00:00Z", lost={"updates": 9})
    assert open_bundle(path).manifest.lost.updates == 0
    assert sentences(path) == ["fault: rank.r1.json: is of another run than manifest.json: it is not read"]


def test_what_cannot_be_read_of_a_rank_is_named(tmp_path):
    path = of_two_ranks(tmp_path, rank=3)
    assert sentences(path) == ["fault: rank.r1.json: is of rank 3"]
    (path / layout.rank_name(1)).write_text('{"rank": 1')
    assert [line[:26] for line in sentences(path)] == ["fault: rank.r1.json: not J"]
    with pytest.raises(BundleError, match=r"rank\.r1\.json: .*unipo-hooks validate"):
        open_bundle(path)


def test_what_one_rank_alone_has_is_shown_and_noted(tmp_path):
    path = of_two_ranks(tmp_path)
    index = path / layout.index_name(1)
    rollout, _ = index.read_text().splitlines(keepends=True)
    index.write_text(rollout)
    bundle = open_bundle(path)
    assert bundle.updates()["ranks"].to_pylist() == [1]
    assert bundle.tokens(update=0)["rank"].to_pylist() == [0, 0]
    assert [part.rank for part in bundle.micro_batches(0)] == [0]
    assert bundle.groups()["size"].to_pylist() == [4]
    assert sentences(path)[:1] == ["note: index.r1.jsonl: lacks 1 update that other ranks have (first: update 0)"]


def test_a_start_with_fewer_ranks_lacks_nothing(tmp_path):
    attempts = [attempt(0, status="interrupted"), attempt(1, first_update=1) | {"ranks": 1}]
    built = Builder(tmp_path, ranks=2, attempts=attempts)
    rows = [response(0, [token(1)])]
    for rank, number in ((0, 0), (1, 0), (0, 1)):
        built.rollout(number, rows, rank=rank, segment=number, attempt=number)
    assert sentences(built.write()) == []


def test_an_attempt_the_manifest_does_not_have_is_one_line(tmp_path):
    with pytest.raises(BundleError, match="the manifest has no attempt 5"):
        open_bundle(of_two_ranks(tmp_path)).manifest.attempt(5)


def started(path, rank=0, joined=None, **changes):
    return Recorder(path, records.run_info(rank=rank, ranks=2, **changes), strict=True, joined=joined)


def written(recorder, number=0):
    rollout = records.rollout(number)
    recorder.rollout(rollout)
    recorder.update(records.update(number, rollout))
    assert recorder.flush(timeout=30)


def test_a_rank_joins_the_folder_and_the_attempt_of_rank_0_also_where_it_does_not_see_them(tmp_path):
    (tmp_path / "here" / "run" / layout.SEGMENTS).mkdir(parents=True)
    first = started(tmp_path / "here" / "run")
    second = started(tmp_path / "there" / "run", 1, first.start)
    assert (first.path, second.path) == (tmp_path / "here" / "run-2", tmp_path / "there" / "run-2")
    written(first), written(second)
    first.close(), second.close()
    assert not (second.path / layout.MANIFEST).exists()
    for file in second.path.rglob("*"):  # as whoever brings the parts together does
        if file.is_file():
            file.rename(first.path / file.relative_to(second.path))
    bundle = open_bundle(first.path)
    assert sentences(first.path) == []
    assert bundle.updates()["ranks"].to_pylist() == [2]
    assert bundle.manifest.cost.segment_bytes == sum(
        file.stat().st_size for file in (first.path / layout.SEGMENTS).iterdir()
    )


def test_numbers_begin_behind_what_any_rank_has(tmp_path):
    first = started(tmp_path / "run")
    second = started(tmp_path / "run", 1, first.start)
    written(first)
    for number in range(3):
        written(second, number)
    first.close("interrupted"), second.close("interrupted")
    again = started(tmp_path / "run", first_update=1)
    other = started(tmp_path / "run", 1, again.start, first_update=1)
    assert again.path == other.path == tmp_path / "run"
    assert again.earlier == other.earlier
    assert again.earlier.next_rollout == {"train": 3, "eval": 0}
    again.close(), other.close()
    assert [each.attempt for each in open_bundle(again.path).manifest.attempts] == [0, 1]


@pytest.mark.parametrize("left", ["the parts of another run", "a run that ended"])
def test_a_rank_never_writes_into_another_run(tmp_path, left):
    old = started(tmp_path / "old")
    other = started(tmp_path / "old", 1, old.start)
    written(other)
    old.close(), other.close()
    joined = old.start
    if left == "the parts of another run":
        joined = joined.model_copy(update={"created": "2020-01-01T00:00:00Z"})
    before = (other.path / layout.index_name(1)).read_bytes()
    with pytest.raises(BundleError, match="another run of rank 1|a run that has ended"):
        started(tmp_path / "old", 1, joined)
    assert (other.path / layout.index_name(1)).read_bytes() == before


@pytest.mark.parametrize("together", [True, False])
def test_the_loss_of_an_update_adds_up_whichever_way_its_ranks_write(tmp_path, together):
    """One record of two data-parallel ranks, or an index each: Σ losses ÷ ranks, and the same weight of every token."""
    of = records.rollout(rows=16)
    random = np.random.default_rng(7)
    log_probs_BT = -random.random((16, 6), np.float32)
    losses, rows = [0.5, -0.25, 1.0, 2.0], np.array_split(np.arange(16), 4)

    def passes(offset):
        return [
            CapturedMicroBatch(
                rollout=0,
                rows_b=part - offset,
                channels={"log_probs": log_probs_BT[part]},
                loss=loss,
                update_tokens=float(of.mask_BT.sum()) / 2,
                rank=number // 2 if together else 0,
            )
            for number, (part, loss) in enumerate(zip(rows, losses, strict=True))
            if together or number // 2 == offset // 8
        ]

    recorders = []
    for rank in range(1 if together else 2):
        own = slice(None) if together else slice(8 * rank, 8 * rank + 8)
        names = ("group_B", "ids_BT", "length_B", "mask_BT", "reward_B", "prompts", "reward_components_BK")
        share = dataclasses.replace(
            of,
            **{name: getattr(of, name)[own] for name in names},
            channels={name: values[own] for name, values in of.channels.items()},
        )
        run = records.run_info(rank=rank, ranks=1 if together else 2, algorithm=SPEC)
        joined = recorders[0].start if recorders else None
        recorders.append(Recorder(tmp_path / "run", run, strict=True, joined=joined))
        recorders[-1].rollout(share)
        made = records.update(0, share, data_parallel_size=2)
        recorders[-1].update(dataclasses.replace(made, micro_batches=passes(8 * rank)))
    for recorder in recorders:
        recorder.close()
    bundle = open_bundle(recorder.path)
    (line,) = bundle.updates().to_pylist()
    assert sum(part["loss"] for part in line["micro_batches"]) / line["data_parallel_size"] == 1.625
    assert bundle.metrics()["policy_loss"].to_pylist() == [1.625]
    assert [part["data_parallel_rank"] for part in line["micro_batches"]] == ([0, 0, 1, 1] if together else [None] * 4)
    worst = 0.0
    for number, part in enumerate(bundle.micro_batches(0)):
        evaluation = evaluate(as_recorded(SPEC, part.batch.arrays), part.batch)
        whole = Batch(
            log_probs=log_probs_BT,
            mask=of.mask_BT,
            group=of.group_B,
            reward=of.reward_B,
            **of.channels,
            normalisers=Normalisers(tokens=float(of.mask_BT.sum()) / 2, data_parallel_size=2),
        )
        expected = evaluate(as_recorded(SPEC, whole.arrays), whole).gradient_weight[rows[number]]
        found = evaluation.gradient_weight
        worst = max(worst, float(np.abs(found - expected[:, : found.shape[1]]).max()))
    print("largest error", worst)
    assert worst < 1e-9
