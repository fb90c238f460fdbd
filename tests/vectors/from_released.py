"""Test vectors from the code authors of algorithms, and of other libraries, have released.

    python tests/vectors/from_released.py CLONES

CLONES is a folder of git clones of the repositories in `vectors.released.tools.COMMITS`, each called `name`,
`owner+name` or `owner-name`, and of the wheels in `WHEELS` (`pip download --no-deps trinity-rft==0.6.0`). Functions are
read at the commits pinned there, run on small random batches in float64 and differentiated by autograd; inputs and
outputs are all that is kept.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from vectors.format import errors, evaluated, write_section
from vectors.released import authors, credit, sampling, trainers, verl_forks
from vectors.released.tools import Case, Released

GENERATORS = (
    *verl_forks.GENERATORS,
    *trainers.GENERATORS,
    *authors.GENERATORS,
    *credit.GENERATORS,
    *sampling.GENERATORS,
)


def main(clones: Path, only: list[str]) -> None:
    """Write the section, if every case agrees with the engine and every repository is there.

    With names of generators, only those run, and nothing is written.
    """
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    cases: list[Case] = []
    wrong = 0
    for generator in GENERATORS:
        if only and generator.__name__ not in only:
            continue
        found = []
        try:
            for each in generator(Released(clones)):
                found.append(each)
        except Exception as error:
            print(f"FAIL {generator.__name__}: {type(error).__name__}: {error}")
            wrong += 1
        for each in found:
            worst = errors(each, evaluated(each))
            passed = max(worst.values()) <= each["tolerance"]
            report = ", ".join(f"{what} {error:.1e}" for what, error in worst.items())
            print(f"{'ok  ' if passed else 'FAIL'} {each['algorithm']:24} {each['against'][:60]:60} {report}")
            wrong += not passed
            cases.append(each)
    if wrong:
        sys.exit(f"{wrong} failures; nothing is written")
    if not only:
        write_section("released", cases)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
