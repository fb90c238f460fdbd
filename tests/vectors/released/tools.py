"""Batches, cases, and the repositories code is read from, at the commits pinned here."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from unipo_hooks import algorithms
from unipo_hooks.objective.describe import given_advantages, inputs
from vectors.foreign import Recorder, Repository, load
from vectors.format import case

COMMITS = {
    "Kwai-Klear/CE-GPPO": "10558fe017ac776773fd7f29753d8353a11c0813",
    "Shenzhi-Wang/Beyond-the-80-20-Rule-RLVR": "6f5dda6f70dbee207bea28705e5f96ce12eb98df",
    "Kwai-Klear/ERC": "f1885c534f8d0dde9764ecbb6a9f259b0dd785cf",
    "suu990901/KlearReasoner": "5d2d0b8c5cde8527bfcd681333527562408c961e",
    "WooooDyy/BAPO": "7287044444d5d578529ea464b45f090a36e8da3a",
    "lime-RL/DCPO": "01787b0f61580961162faeb492defeb39f1eba53",
    "starriver030515/HAPO": "7671dde3e268779a949954ec75ed3edda45f7e0a",
    "YihongDong/RL-PLUS": "eb4aa4d4e2d7ce206056f9d7740138bfc94fad8f",
    "Optimization-AI/DisCO": "bd2b078129347a87c10fbb64df12ed50dce59947",
    "NovaSky-AI/SkyRL": "a9564572eb8e91076be43c1bd5e4615e3de17265",
    "inclusionAI/AReaL": "4aef98d8d818af55b43621aaadba047ae10f4e77",
    "callsys/GMPO": "205b2bf412f150cf96c29b33273b81bcd1a9b20f",
    "PRIME-RL/Entropy-Mechanism-of-RL": "88505792fd97a11993445e93195145e3c1181955",
    "sail-sg/understand-r1-zero": "dfca49dd460ee7cc8e4a5a162c876a7fd6993b87",
    "changyi7231/BNPO": "a9c51b9848283286ff3c51afbba2a867977a2e36",
    "liziniu/ReMax": "536ba49cc2f9a1a76941045388a44757e2533e75",
    "AMAP-ML/GPG": "e096da8ce527a1636272469cee383ba71ec4a511",
    "NVlabs/DLER": "ea7d4f7b54eff6e85267fab1af4863d0aec27d51",
    "hkust-nlp/KernelGYM": "3a84417f8c0efaadb215ef638b37d12e71ed20f3",
    "sail-sg/AnytimeReasoner": "7e3f5bb3e0617dbc8c3c522937bab1974b444982",
    "PrimeIntellect-ai/prime-rl": "559b44772e471d1538537b8805cc77f3824a5e64",
    "OpenRLHF/OpenRLHF": "3c3be6234e0cb353e76bb8019947db9dfe99fca7",
    "verl-project/verl-recipe": "48ea0a797fa29867ea0ad92aff7d284eec7d4be3",
    "TsinghuaC3I/Unify-Post-Training": "ae332f5fa4dc8b4c3d3cd77ebc9cff3a3abab2d0",
    "zhangxy-2019/critique-GRPO": "e8f03a20b49511e10e71f361c70e46aae3ae8753",
    "RUC-NLPIR/ARPO": "a95cd0894b53e97595845bd680ed7e85524a2244",
    "RLHFlow/Reinforce-Ada": "05be6058dc04adc89d31a51f9903177a0c180f15",
    "MikeWangWZHL/PAPO": "fb63bf4533b78da5a2bb17bc812375dcb620887d",
    "ernie-research/MA-RLHF": "807551d519d738b2f446a2fd878f9afd2cbb4e7a",
    "zkshan2002/RTO": "f2c12948c2d9ce68519d174b891b27e0672bc571",
    "abaheti95/LoL-RL": "9f8d81660bfa0bad17ae5d7835185987f028812e",
    "longmalongma/TW-GRPO": "aa529ffca7ae408e4f3df7ba71cb0dc58544c6b7",
    "modelscope/ms-swift": "3602360a562313afbf2ef6065fdf61f271a2c5b9",
    "Indolent-Kawhi/View-R1": "093f2d82eee37e76594486831c122d7d19161c07",
    "dvlab-research/ARPO": "7489ae309e90d8b3b9e823f495b63e5116434060",
    "InfiXAI/InfiGUI-G1": "22208e4d4826626731292fa08bb73ec9fc6f9b15",
    "AIFrameResearch/SPO": "b9fc6a263dec54e28137fd488a9b9c0e0d026025",
}
WHEELS = {"trinity-rft": "0.6.0"}

Case = dict[str, Any]
Batch = dict[str, np.ndarray]
Tensors = SimpleNamespace


class Released:
    """Where the code is, and the cases made of it."""

    def __init__(self, clones: Path) -> None:
        self.clones = clones

    def __call__(self, name: str) -> Repository:
        return Repository(name, (COMMITS | WHEELS)[name], self.clones)


def batch(seed: int, *, spread: float = 0.5, binary: bool = True, rows: int = 6, width: int = 6) -> Batch:
    """Two groups of responses of unequal lengths, moved far enough that every bound is crossed on both sides."""
    rng = np.random.default_rng(seed)
    mask = (np.arange(width) < rng.integers(2, width + 1, rows)[:, None]).astype(float)
    mask[0] = 1
    log_probs = -rng.exponential(0.9, (rows, width)) - 0.05
    old = np.minimum(log_probs - rng.normal(0, spread, (rows, width)), -0.02)
    # one token each far outside, for a dual clip and for caps
    old[0, 0], old[rows - 1, 0], old[1, 1], old[rows - 2, 1] = log_probs[0, 0] - 2, log_probs[-1, 0] - 2, -0.02, -0.02
    reward = rng.integers(0, 2, rows).astype(float) if binary else rng.normal(0, 1, rows)
    if binary:
        half = rows // 2
        reward[0], reward[1], reward[half], reward[rows - 1] = 1, 0, 1, 0
    group = np.arange(rows) // (rows // 2)
    made = {
        "log_probs": log_probs,
        "old_log_probs": old,
        "ref_log_probs": np.minimum(log_probs - rng.normal(0, 0.4, (rows, width)), -0.02),
        "rollout_log_probs": np.minimum(old - rng.normal(0, 0.3, (rows, width)), -0.02),
        "entropies": rng.uniform(0.05, 2.0, (rows, width)),
        "values": rng.normal(0, 0.5, (rows, width)),
        "reward": reward,
    }
    made = {name: np.round(values, 3) for name, values in made.items()}
    return made | {"mask": mask, "group": group, "ids": rng.integers(0, 9, (rows, width))}


def tensors(data: Batch, advantages: np.ndarray | None = None) -> Tensors:
    """The batch as torch tensors; log_probs takes a gradient, mask stays as it is, `advantages` are (B, T)."""
    made = {name: torch.tensor(values) for name, values in data.items()}
    made["log_probs"].requires_grad_()
    if advantages is None:
        advantages = data.get("advantages")
    if advantages is not None:
        wide = advantages if advantages.ndim == 2 else np.repeat(advantages[:, None], data["mask"].shape[1], 1)
        made["advantages"] = torch.tensor(wide * data["mask"])
    return SimpleNamespace(**made, uid=data["group"])


def with_advantages(data: Batch, seed: int = 0) -> Batch:
    """A batch with advantages of both signs."""
    rng = np.random.default_rng(seed + 100)
    size = np.round(rng.uniform(0.3, 1.6, len(data["reward"])), 3)
    return data | {"advantages": size * np.where(np.arange(len(size)) % 2 == 0, 1, -1)}


def objective(
    name: str,
    algorithm: str,
    against: str,
    data: Batch,
    loss: Callable[[Tensors], torch.Tensor],
    *,
    gradient_only: bool = False,
    given: bool = True,
    **options: Any,
) -> Case:
    """A case of a loss and its gradient, advantages given."""
    given_tensors = tensors(data)
    value = loss(given_tensors)
    (gradient,) = torch.autograd.grad(value, given_tensors.log_probs)
    expected = {"gradient_weight": gradient} if gradient_only else {"loss": value, "gradient_weight": gradient}
    return made(name, algorithm, against, data, expected, given=given, **options)


def advantages(
    name: str, algorithm: str, against: str, data: Batch, values: torch.Tensor | np.ndarray, **options: Any
) -> Case:
    """A case of advantages computed from rewards."""
    values = np.asarray(values)
    wide = values if values.ndim == 2 else np.repeat(values[:, None], data["mask"].shape[1], 1)
    return made(name, algorithm, against, data, {"advantages": wide * data["mask"]}, **options)


def made(
    name: str,
    algorithm: str,
    against: str,
    data: Batch,
    expected: dict[str, Any],
    *,
    given: bool = False,
    **options: Any,
) -> Case:
    """A case with the inputs the algorithm looks at, and no others."""
    spec = algorithms.get(algorithm)
    spec = given_advantages(spec, modulated=True) if given else spec
    kept = {key: data[key] for key in ("log_probs", "mask", *inputs(spec)) if key in data}
    return case(name, algorithm, against, kept, expected, given=given, **options)


def last_token(t: Tensors) -> torch.Tensor:
    """The reward at the last token of each response, (B, T)."""
    return t.reward[:, None] * torch.nn.functional.one_hot(t.mask.sum(1).long() - 1, t.mask.shape[1])


def segments(data: Batch, cuts: tuple[int, ...]) -> Batch:
    """The batch cut into segments that begin at 0 and at the given positions."""
    number = np.searchsorted(cuts, np.arange(data["mask"].shape[1]), side="right")
    return data | {"segments": np.broadcast_to(number, data["mask"].shape).copy()}


def core_algos(
    repository: Repository, *names: str, root: str = "verl", path: str = "trainer/ppo", **beside: Any
) -> Any:
    """Functions of a fork's core_algos, with its own masked mean and aggregation."""
    functional = load(
        repository, f"{root}/utils/torch_functional.py", "masked_mean", "masked_sum", "masked_whiten", "masked_var"
    )
    functional.masked_mean = Recorder(functional.masked_mean)
    found = load(repository, f"{root}/{path}/core_algos.py", *names, verl_F=functional, **beside)
    found.verl_F = functional
    return found


def group_advantages(released: Released, name: str, algorithm: str, root: str = "verl", **options: Any) -> Case:
    """Advantages by the repository's own copy of the group norm."""
    repository = released(name)
    function = core_algos(repository, "compute_grpo_outcome_advantage", root=root).compute_grpo_outcome_advantage
    data = batch(11, binary=False) | options.pop("beside", {})
    t = tensors(data)
    scores = t.reward[:, None] * torch.nn.functional.one_hot(t.mask.sum(1).long() - 1, t.mask.shape[1])
    normalise = options.pop("normalise", True)
    values, _ = function(scores, t.mask, t.uid, norm_adv_by_std_in_grpo=normalise)
    against = repository.against("compute_grpo_outcome_advantage")
    return advantages("a group of rewards", algorithm, against, data, values, **options)
