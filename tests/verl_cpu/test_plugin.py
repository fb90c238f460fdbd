"""What an installed package does to `import verl`: next to nothing, until a trainer with `config.unipo` is made.

Each case is a process of its own that imports verl for the first time. It is forked from one that has imported other
people's libraries, which is what takes the seconds.
"""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

# A module inside verl: `verl` alone would be found wherever this folder's parent is on the path.
pytest.importorskip("verl.trainer.ppo", reason="needs verl: make test runs it in .venv-verl")

OURS = {"unipo_hooks", "unipo_hooks.adapters", "unipo_hooks.adapters.verl", "unipo_hooks.adapters.verl.plugin"}

FORKS = """
import json, os, sys, traceback
import hydra, numpy, omegaconf, packaging, ray, tensordict, torch, torchdata.stateful_dataloader, transformers
for line in sys.stdin:
    case = json.loads(line)
    pid = os.fork()
    if pid == 0:
        status = 1
        output = os.open(case["output"], os.O_WRONLY | os.O_CREAT)
        os.dup2(output, 1), os.dup2(output, 2)
        try:
            os.environ.update(case["env"])
            sys.argv = ["main_ppo.py", *case["arguments"]]
            sys.orig_argv = [sys.executable, *(case["command"] or sys.argv[:1]), *case["arguments"]]
            sys.path[:0] = case["path"]
            exec(compile(case["code"], "case", "exec"), {"__name__": "case"})
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush(), sys.stderr.flush()
            os._exit(status)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""

TRAINERS = """
import json, sys
import verl
from verl.trainer.ppo.v1 import trainer_base, trainer_sync
from verl.trainer.ppo import ray_trainer
CLASSES = [trainer_base.PPOTrainer, ray_trainer.RayPPOTrainer]

def made(*overrides):
    import hydra
    with hydra.initialize_config_module("verl.trainer.config", version_base=None):
        return trainer_sync.PPOTrainerSync(config=hydra.compose("ppo_trainer", overrides=list(overrides)))

def is_ours(function):
    return function.__code__.co_filename.endswith("adapters/verl/plugin.py")

def wraps(cls):
    count, init = 0, cls.__init__
    while init is not None:
        count, init = count + is_ours(init), getattr(init, "__wrapped__", None)
    return count

def touched(cls):
    return [name for name, value in vars(cls).items() if hasattr(value, "__code__") and is_ours(value)]
"""

Case = Callable[..., SimpleNamespace]


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Case]:
    """Runs code in a process that has not imported verl; its last line is JSON."""
    folder = tmp_path_factory.mktemp("cases")
    pipe = subprocess.PIPE
    forks = subprocess.Popen([sys.executable, "-c", FORKS], stdin=pipe, stdout=pipe, text=True, cwd="/")

    def run(code: str, *arguments: str, command: tuple[str, ...] = (), path: str = "", **env: str) -> SimpleNamespace:
        output = folder / str(len(list(folder.iterdir())))
        asked = {"code": textwrap.dedent(code), "arguments": arguments, "command": command, "env": env}
        forks.stdin.write(json.dumps({**asked, "path": [path] if path else [], "output": str(output)}) + "\n")
        forks.stdin.flush()
        status, text = int(forks.stdout.readline()), output.read_text()
        assert status == 0, text
        lines = text.splitlines()
        said = [line[line.index("unipo-hooks:") :] for line in lines if "unipo-hooks:" in line]
        return SimpleNamespace(found=json.loads(lines[-1]), said=said, text=text)

    yield run
    forks.communicate()


LOADED = """
import json, sys
before = set(sys.modules)
import verl
print(json.dumps(sorted(set(sys.modules) - before)))
"""


def test_import_verl_loads_four_small_modules_of_ours_and_nothing_for_them(case):
    without = set(case(LOADED, VERL_USE_EXTERNAL_PLUGINS="none").found)
    with_ours = set(case(LOADED).found)
    more = with_ours - without
    assert {name for name in with_ours if name.startswith("unipo_hooks")} == OURS
    assert {name.partition(".")[0] for name in more - OURS} <= set(sys.stdlib_module_names)
    print(f"more modules than without: {sorted(more)}")


def test_the_plugin_needs_nothing_but_the_standard_library():
    code = "import sys, json; before = set(sys.modules); import unipo_hooks.adapters.verl; "
    code += "print(json.dumps(sorted(set(sys.modules) - before)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd="/", check=True)
    assert {name for name in json.loads(done.stdout) if name.partition(".")[0] not in sys.stdlib_module_names} == OURS


def test_looking_at_every_import_costs_microseconds_at_most(case):
    found = case("""
        import json, timeit, verl
        from unipo_hooks.adapters.verl.plugin import Watcher
        watcher, times = Watcher(), 100_000
        took = min(timeit.repeat(lambda: watcher.find_spec("some.module"), number=times, repeat=3))
        print(json.dumps(1e9 * took / times))
    """).found
    print(f"{found:.0f} ns an import")
    assert found < 10_000  # on a busy machine


def test_a_trainer_without_the_setting_is_as_verl_made_it(case):
    ask = (
        TRAINERS
        + """
trainer = made()
print(json.dumps({
    "wraps": [wraps(cls) for cls in CLASSES],
    "touched": [touched(cls) for cls in CLASSES],
    "attributes": sorted(vars(trainer)),
    "ours": sorted(name for name in sys.modules if name.startswith("unipo_hooks")),
}))
"""
    )
    plain, inert = case(ask, VERL_USE_EXTERNAL_PLUGINS="none"), case(ask)
    assert plain.found["wraps"] == [0, 0] and inert.found["wraps"] == [1, 1]
    assert plain.found["touched"] == [[], []] and inert.found["touched"] == [["__init__", "_update_actor"]] * 2
    assert inert.found["attributes"] == plain.found["attributes"]
    assert set(inert.found["ours"]) == OURS
    assert inert.said == plain.said == []


def test_a_trainer_with_the_setting_is_captured(case, tmp_path):
    ask = (
        TRAINERS
        + f"""
plain, trainer = made(), made("+unipo.path={tmp_path}/run")
print(json.dumps(sorted(set(vars(trainer)) - set(vars(plain)))))
"""
    )
    found = case(ask)
    ours = ["_init_resource_pool_mgr", "_load_checkpoint", "_save_checkpoint", "_update_actor", "fit"]
    assert found.found == ours
    assert found.said == []


def test_named_in_the_environment_as_well_it_wraps_once(case):
    ask = (
        TRAINERS
        + """
from unipo_hooks.adapters.verl.plugin import Watcher
print(json.dumps([[wraps(cls) for cls in CLASSES], sum(isinstance(each, Watcher) for each in sys.meta_path)]))
"""
    )
    name = "unipo_hooks.adapters.verl"
    assert case(ask, VERL_USE_EXTERNAL_MODULES=name).found == [[1, 1], 1]
    assert case(ask, VERL_USE_EXTERNAL_MODULES=name, VERL_USE_EXTERNAL_PLUGINS="none").found == [[1, 1], 1]


def test_trainers_that_are_loaded_already_are_wrapped(case):
    ask = (
        TRAINERS
        + """
before = [wraps(cls) for cls in CLASSES]
import unipo_hooks.adapters.verl
after = [wraps(cls) for cls in CLASSES]
unipo_hooks.adapters.verl.plugin.watch()
print(json.dumps([before, after, [wraps(cls) for cls in CLASSES]]))
"""
    )
    assert case(ask, VERL_USE_EXTERNAL_PLUGINS="none").found == [[0, 0], [1, 1], [1, 1]]


def test_verl_found_by_a_finder_of_its_own_is_captured_too(case, tmp_path):
    """As of editable installs: some finders know the package alone, some every module in it, and stand in front."""
    import verl

    (tmp_path / "source").symlink_to(Path(verl.__file__).parent)
    ask = f"""
import sys
from importlib.util import spec_from_file_location
from pathlib import Path
seen = []

class Editable:
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        first, _, rest = name.partition(".")
        if first != "verl":
            return None
        place = Path({str(tmp_path / "source")!r}, *rest.split(".")) if rest else Path({str(tmp_path / "source")!r})
        if (place / "__init__.py").exists():
            return spec_from_file_location(name, place / "__init__.py", submodule_search_locations=[str(place)])
        file = place.with_suffix(".py")
        if name.endswith("trainer_base"):
            seen.append(name)
        return spec_from_file_location(name, file) if file.exists() else None

sys.meta_path.insert(0, Editable)
{TRAINERS}
print(json.dumps([[wraps(cls) for cls in CLASSES], seen, verl.__file__]))
"""
    wraps, seen, file = case(ask).found
    assert wraps == [1, 1]
    assert seen == ["verl.trainer.ppo.v1.trainer_base"]
    assert file == str(tmp_path / "source" / "__init__.py")


def test_beside_a_finder_that_asks_all_finders_itself_a_trainer_is_wrapped_once(case):
    ask = f"""
import importlib.util, json, sys, verl

class Asking:
    asking = False

    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if cls.asking or not name.startswith("verl.trainer.ppo."):
            return None
        cls.asking = True
        try:
            return importlib.util.find_spec(name)
        finally:
            cls.asking = False

sys.meta_path.insert(1, Asking)
{TRAINERS}
print(json.dumps([wraps(cls) for cls in CLASSES]))
"""
    assert case(ask).found == [1, 1]


def test_a_module_that_is_only_looked_for_is_not_loaded(case):
    ask = """
import importlib.util, json, sys, verl
names = ["verl.trainer.ppo.ray_trainer", "verl.trainer.ppo.nothing_like_it"]
specs = [importlib.util.find_spec(name) for name in names]
print(json.dumps([[spec is not None for spec in specs], [name in sys.modules for name in names]]))
"""
    assert case(ask).found == [[True, False], [False, False]]


def test_without_a_dependency_there_is_one_line_and_the_trainer(case, tmp_path):
    ask = (
        TRAINERS
        + f"""
plain = made()
for name in [name for name in sys.modules if name.partition(".")[0] == "pyarrow"]:
    del sys.modules[name]
sys.modules["pyarrow"] = None
trainer = made("+unipo.path={tmp_path}/run")
print(json.dumps(sorted(vars(trainer)) == sorted(vars(plain))))
"""
    )
    done = case(ask)
    assert done.found is True
    assert done.said == [
        "unipo-hooks: capture is off: pyarrow is missing: pip install pyarrow. Training goes on.",
    ]


def test_a_verl_in_which_something_has_moved_is_one_line_and_the_trainer(case, tmp_path):
    ask = (
        TRAINERS
        + f"""
from importlib.abc import MetaPathFinder

class Moved(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name == "unipo_hooks.adapters.verl.trainer":
            raise AttributeError("there is no such thing any more")

plain = made()
sys.meta_path.insert(0, Moved())
trainer = made("+unipo.path={tmp_path}/run")
print(json.dumps(sorted(vars(trainer)) == sorted(vars(plain))))
"""
    )
    done = case(ask)
    assert done.found is True
    assert done.said == [
        "unipo-hooks: capture is off: AttributeError: there is no such thing any more. Training goes on.",
    ]


ONLY_VERL = "import json, verl\nprint(json.dumps(None))"


def test_a_trl_verl_cannot_use_is_named_before_verl_fails_on_it(case, tmp_path):
    (tmp_path / "trl").mkdir()
    (tmp_path / "trl" / "__init__.py").write_text("class GRPOTrainer: ...\n")
    ask = """
import json, verl
from verl.models.transformers.monkey_patch import apply_monkey_patch
from transformers import Qwen2Config, Qwen2ForCausalLM
model = Qwen2ForCausalLM(Qwen2Config(vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1,
                                     num_attention_heads=2, num_key_value_heads=2))
try:
    apply_monkey_patch(model)
    failed = None
except ImportError as error:
    print(error)
    failed = str(error)
print(json.dumps(failed))
"""
    done = case(ask, "+unipo.path=runs/x", path=str(tmp_path))
    assert "AutoModelForCausalLMWithValueHead" in done.found
    assert len(done.said) == 1 and "pip uninstall trl" in done.said[0]
    assert done.text.index("unipo-hooks:") < done.text.index("cannot import name")
    assert case(ONLY_VERL, path=str(tmp_path)).said == []


@pytest.mark.parametrize("place", ["trl/__init__.py", "trl/experimental/ppo/__init__.py"])
def test_a_trl_verl_can_use_is_not_mentioned(case, tmp_path, place):
    (tmp_path / place).parent.mkdir(parents=True)
    (tmp_path / "trl" / "__init__.py").touch()
    (tmp_path / place).write_text("class AutoModelForCausalLMWithValueHead: ...\n")
    assert case(ONLY_VERL, "+unipo.path=runs/x", path=str(tmp_path)).said == []


def test_a_missing_transfer_queue_is_named_where_the_trainer_needs_it(case):
    hidden = "import sys\nsys.modules['transfer_queue'] = None\n" + ONLY_VERL
    said = case(hidden, "+unipo.path=runs/x").said
    assert len(said) == 1 and "pip install TransferQueue" in said[0] and "trainer.use_v1=False" in said[0]
    assert case(hidden).said == []
    assert case(hidden, "+unipo.path=runs/x", "trainer.use_v1=False").said == []
    assert case(ONLY_VERL, "+unipo.path=runs/x").said == []


@pytest.mark.parametrize(
    "module",
    [
        "verl.experimental.fully_async_policy.fully_async_main",
        "verl.experimental.one_step_off_policy.main_ppo",
        "verl.trainer.main_ppo_sync",
    ],
)
def test_a_command_whose_trainers_are_not_captured_is_told_once(case, module):
    said = case(ONLY_VERL, "+unipo.path=runs/x", command=("-m", module)).said
    assert len(said) == 1 and "verl.trainer.main_ppo" in said[0] and "Training goes on" in said[0]
    assert case(ONLY_VERL, command=("-m", module)).said == []
    assert case(ONLY_VERL, "+unipo.path=runs/x", command=("-m", "verl.trainer.main_ppo")).said == []


def test_a_word_in_a_setting_is_no_command(case):
    settings = ("+unipo.path=runs/x", "trainer.experiment_name=fully_async", "trainer.use_v1=false")
    assert case(ONLY_VERL, *settings, command=("-m", "verl.trainer.main_ppo")).said == []


def test_a_trainer_made_past_its_own_constructor_is_told_once_that_it_is_not_captured(case):
    """As the asynchronous ones of verl's experiments are, whoever starts them."""
    ask = (
        TRAINERS
        + """
class Asynchronous(ray_trainer.RayPPOTrainer):
    def __init__(self, config):
        self.config = config

calls = 0
for settings in ({"unipo": {"path": "runs/x"}}, {}):
    trainer = Asynchronous(settings)
    for _ in range(2):
        try:
            trainer._update_actor(None)
        except AttributeError:  # of verl's own: there is nothing to train here
            calls += 1
print(json.dumps(calls))
"""
    )
    done = case(ask)
    assert done.found == 4
    assert len(done.said) == 1 and "are not captured" in done.said[0]
