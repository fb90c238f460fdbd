"""A bundle of format 1.0 as the first release wrote it: readable for ever. Never write the fixture anew."""

from pathlib import Path

import numpy as np
import pytest

from unipo_hooks import open_bundle
from unipo_hooks.bundle.verify import verify

BUNDLE = Path(__file__).parents[1] / "fixtures" / "bundle_v1"


def test_a_bundle_of_format_1_is_valid():
    assert verify(BUNDLE) == []


def test_a_bundle_of_format_1_says_what_it_said():
    bundle = open_bundle(BUNDLE)
    assert bundle.manifest.version == "1.0"
    assert bundle.updates().column("update").to_pylist() == [0, 1, 2, 3]
    assert len(bundle.updates(kind="eval")) == 1
    metrics = bundle.metrics()
    assert metrics.column("grad_norm").to_pylist() == [0.5, 1.5, 2.5, 3.5]
    assert metrics.column("reward").to_pylist() == pytest.approx([-0.3507890962] * 2 + [-0.2941094088] * 2)
    group = bundle.groups(rollout=1).to_pylist()[0]
    assert (group["prompt"], group["size"], group["kept"], group["weight"]) == ("bcd", 4, True, 1.5)
    tokens = bundle.tokens(update=3)
    assert "".join(tokens.column("strings").to_pylist()) == "snwljhdllquwfpjpux"
    assert np.nansum(tokens.column("log_probs").to_numpy()) == pytest.approx(-8.653777, abs=1e-5)
