import os
import signal
import subprocess
import sys
from pathlib import Path

from unipo_hooks.bundle.reader import open_bundle
from unipo_hooks.bundle.verify import verify


def test_sigterm_at_any_moment_of_handing_over_ends_the_process_in_time_and_accounts_for_everything(tmp_path):
    """The code it interrupts may hold the queue's lock."""
    script = Path(__file__).with_name("sigterm_children.py")
    environment = os.environ | {"PYTHONPATH": str(script.parent)}
    run = subprocess.run([sys.executable, script, tmp_path, "8"], env=environment, stdout=subprocess.PIPE, check=True)
    slowest = 0.0
    for child, line in enumerate(run.stdout.decode().splitlines()):
        status, handed_over, took = line.split()
        slowest = max(slowest, float(took))
        assert int(status) == -signal.SIGTERM
        bundle = open_bundle(tmp_path / str(child))
        kept, lost = bundle.updates().column("update").to_pylist(), bundle.manifest.lost.updates
        assert kept == list(range(len(kept)))
        assert len(kept) + lost >= int(handed_over)
        assert bundle.manifest.status == "interrupted"
        assert [str(fault) for fault in verify(bundle.path) if fault.severity == "fault"] == []
    print(f"slowest end of {child + 1}: {slowest:.2f} s")
    assert child == 7
    assert slowest < 6
