"""What is known of verl: which objective its settings run. verl itself is not needed for it."""

from unipo_hooks.adapters.verl.algorithm import VerlAlgorithm, normalisers_from_verl, spec_from_verl

__all__ = ["VerlAlgorithm", "normalisers_from_verl", "spec_from_verl"]
