"""The house keeps its shape: who may import whom, no cycles, what is public, what an import costs, how deep a step
is."""

from __future__ import annotations

import ast
import inspect
import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import nn

import sightline
from conftest import python
from sightline.config.names import NAMES
from sightline.config.schema import TrainConfig
from sightline.config.typed import walk
from sightline.engine.tasks import SupervisedTask
from sightline.engine.trainer import Trainer
from sightline.types import Batch, TrainState

SOURCE = Path(sightline.__file__).parent
LAYERS = [
    (
        *("__init__", "errors", "files", "identity", "lazy", "locate", "modes", "monitors", "random", "ranks"),
        *("scores", "types", "yamlfile"),
    ),
    ("data", "foreignmetrics", "metrics", "models", "optim"),
    ("engine",),
    ("runs", "testing"),
    ("session",),
    ("config", "serve", "streaming"),
    ("sweep",),
    ("components", "learner", "params"),
    ("__main__", "cli", "commands"),
]
LAYER = {room: number for number, rooms in enumerate(LAYERS) for room in rooms}
ENGINE_MAY = {"yamlfile", "errors", "files", "locate", "modes", "random", "types", "metrics", "optim", "engine"}
CONFIG_ALONE = ("config.names", "config.ranges", "config.schema", "config.shorthand", "config.typed")
"""These may import layer 0 and one another only: they answer before torch is there."""
ONLY_IN = {
    "hydra": ("commands",),
    "omegaconf": ("commands",),
    "optuna": ("sweep",),
    "tensorboard": ("runs",),
    "matplotlib": ("runs",),
    "torchvision": (),
    "torchmetrics": (),
    "timm": (),
}


def tree() -> dict[str, str]:
    """Dotted module name below the package -> source."""
    found = {}
    for file in SOURCE.rglob("*.py"):
        parts = file.relative_to(SOURCE).with_suffix("").parts
        found[".".join(part for part in parts if part != "__init__") or "__init__"] = file.read_text(encoding="utf-8")
    return found


def imports(source: str) -> list[str]:
    """Every module a source imports, anywhere in it, but under `if TYPE_CHECKING`."""
    found = []

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            return
        if isinstance(node, ast.Import):
            found.extend(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.extend(f"{node.module}.{alias.name}" for alias in node.names)
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(ast.parse(source))
    return found


def breaches(modules: Mapping[str, str]) -> list[str]:
    """What the modules import and may not."""
    wrong = []
    for name, source in modules.items():
        room = name.partition(".")[0]
        for target in imports(source):
            root, _, rest = target.partition(".")
            if root in ONLY_IN and room not in ONLY_IN[root]:
                wrong.append(f"{name} imports {target}")
            if root != "sightline" or not rest:
                continue
            to = rest.partition(".")[0]
            if to not in LAYER:
                continue  # a name of the package itself, such as __version__
            allowed = LAYER[to] < LAYER[room] or to == room
            if room == "engine":
                allowed = to in ENGINE_MAY
            if name in CONFIG_ALONE:
                allowed = LAYER[to] == 0 or rest.startswith(CONFIG_ALONE)
            if LAYER[room] == 0:
                allowed = LAYER[to] == 0
            if room in LAYERS[-1]:
                allowed = True
            if not allowed:
                wrong.append(f"{name} (layer {LAYER[room]}) imports {target} (layer {LAYER[to]})")
    return wrong


def cycles(modules: Mapping[str, str]) -> list[str]:
    """Chains of imports that come back to where they began."""
    edges: dict[str, set[str]] = {}
    for name, source in modules.items():
        reached = set()
        for target in imports(source):
            parts = target.split(".")[1:] if target.startswith("sightline.") else []
            reached |= {".".join(parts[:n]) for n in range(1, len(parts) + 1)} & set(modules)
        edges[name] = reached - {name}
    found, done = [], set()

    def walk(name: str, path: tuple[str, ...]) -> None:
        if name in path:
            found.append(" -> ".join((*path[path.index(name) :], name)))
        elif name not in done:
            for target in sorted(edges[name]):
                walk(target, (*path, name))
            done.add(name)

    for name in edges:
        walk(name, ())
    return found


def test_every_module_is_on_a_floor() -> None:
    rooms = {name.partition(".")[0] for name in tree()} - {"__init__"}
    assert rooms <= set(LAYER), f"no layer for {rooms - set(LAYER)}"


def test_layers_are_kept() -> None:
    assert breaches(tree()) == []


def test_no_import_cycles() -> None:
    assert cycles(tree()) == []


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("errors", "from sightline.metrics import Meter"),
        ("data.loader", "from sightline.models.spec import ModelSpec"),
        ("engine.trainer", "from sightline.data.loader import BatchLoader"),
        ("runs.artifact", "def f():\n    from sightline.config.build import fit"),
        ("config.schema", "import sightline.metrics"),
        ("config.build", "import hydra"),
        ("models.spec", "import torchvision"),
    ],
)
def test_a_breach_is_noticed(module: str, line: str) -> None:
    modules = tree()
    assert breaches({**modules, module: f"{modules[module]}\n{line}\n"})


ROOT_ONLY = ("Trainer(", "Checkpointer(", ".locked(")


def roots(modules: Mapping[str, str]) -> list[str]:
    """Where a training is put together by anyone but the session."""
    return [
        f"{name}: {call}"
        for name, source in modules.items()
        if name != "session" and not name.startswith("engine")
        for call in ROOT_ONLY
        if re.search(rf"(?<![\w.]){re.escape(call)}" if call[0] != "." else re.escape(call), source)
    ]


def test_only_the_session_puts_a_training_together() -> None:
    """No interface takes a lock, or makes a trainer or a checkpointer itself."""
    modules = tree()
    assert roots(modules) == []
    for call in ROOT_ONLY:
        assert call in modules["session"]
        line = f"made = {'run' if call.startswith('.') else ''}{call})"
        assert roots({**modules, "params.loop": f"{modules['params.loop']}\n{line}\n"}) == [f"params.loop: {call}"]


def test_a_cycle_is_noticed() -> None:
    modules = tree()
    modules["data.tables"] += "\nimport sightline.data.sources\n"
    assert any("data.sources" in chain and "data.tables" in chain for chain in cycles(modules))


def test_public_names() -> None:
    """Every public name can be had, is documented, and nothing public is missing from the list a type checker sees."""
    for name in sightline.__all__:
        value = getattr(sightline, name)
        assert inspect.getdoc(value), name
    source = ast.parse((SOURCE / "__init__.py").read_text(encoding="utf-8"))
    guarded = next(node for node in source.body if isinstance(node, ast.If))
    typed = {alias.name for node in guarded.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert typed == set(sightline.__all__) == set(sightline._HOMES)
    with pytest.raises(AttributeError, match="no attribute 'trainer_'"):
        sightline.trainer_  # noqa: B018


def test_public_functions_and_classes_are_documented() -> None:
    missing = []
    for name, source in tree().items():
        module = ast.parse(source)
        if not ast.get_docstring(module):
            missing.append(name)
        classes = [node for node in module.body if isinstance(node, ast.ClassDef)]
        for node in [*module.body, *(member for owner in classes for member in owner.body)]:
            is_public = isinstance(node, ast.ClassDef | ast.FunctionDef) and not node.name.startswith("_")
            stub = isinstance(node, ast.FunctionDef) and isinstance(node.body[0], ast.Expr) and len(node.body) == 1
            if is_public and not stub and not ast.get_docstring(node):
                missing.append(f"{name}.{node.name}")
    allowed = {"forward", "__len__", "shape", "construct_mapping", "enter", "leave", "hook", "fill", "run", "normalize"}
    assert [name for name in missing if name.rpartition(".")[2] not in allowed] == []


HEAVY = ("torch", "numpy", "PIL", "hydra", "rich", "sklearn", "tensorboard", "yaml")


def loaded_after(code: str) -> set[str]:
    """Which heavy libraries a fresh interpreter has imported after running `code`."""
    told = python(f"import sys, json\n{code}\nprint(json.dumps([n.partition('.')[0] for n in sys.modules]))")
    return set(json.loads(told.splitlines()[-1])) & set(HEAVY)


def run_in_process(*words: str) -> str:
    return f"from sightline.cli import main\ntry:\n    main({list(words)!r})\nexcept SystemExit:\n    pass"


def test_import_and_help_are_light() -> None:
    assert loaded_after("import sightline") == set()
    assert loaded_after(run_in_process("--help")) == set()


@pytest.mark.parametrize(
    "words",
    [
        ("train", "trainer.max_epoch=1"),
        ("train", "trainer.max_epochs=many"),
        ("train", "experiment=mnits"),
        ("train", "module.network=1"),
        ("train", "--help"),
    ],
)
def test_a_config_error_is_told_without_torch(words: tuple[str, ...]) -> None:
    assert not loaded_after(run_in_process(*words)) & {"torch", "numpy", "sklearn", "PIL"}


def test_the_package_alone_adds_few_modules_to_torch() -> None:
    """Counted, not timed: beyond torch and what torch brings, the public names pull in no heavy library."""
    code = "import torch, sys\nbefore = set(sys.modules)\nimport sightline as s\n[getattr(s, n) for n in s.__all__]\n"
    told = python(f"{code}\nimport json\nprint(json.dumps([n.partition('.')[0] for n in set(sys.modules) - before]))")
    added = set(json.loads(told.splitlines()[-1]))
    assert not added & {"hydra", "omegaconf", "sklearn", "scipy", "tensorboard", "matplotlib", "torchvision", "timm"}


def test_the_digits_come_with_the_package() -> None:
    code = "from sightline.data.sources import open_source\nopen_source('digits', val=0.1, test=0.1, seed=0)"
    assert not loaded_after(code) & {"sklearn", "torch"}


class Deep(nn.Module):
    """Notes the stack above its forward."""

    frames: list[str]

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        frame = sys._getframe()
        self.frames = []
        while frame.f_back is not None:
            frame = frame.f_back
            self.frames.append(frame.f_code.co_filename)
        return self.linear(x)


def test_three_frames_in_two_files_before_forward() -> None:
    model = Deep()
    state = TrainState(model, torch.optim.SGD(model.parameters(), lr=0.1))
    task = SupervisedTask(nn.CrossEntropyLoss())
    Trainer(task, state, [Batch(torch.randn(2, 4), torch.tensor([0, 1]))], max_epochs=1).fit()
    ours = [name for name in model.frames if Path(name).is_relative_to(SOURCE)]
    assert 1 <= len(ours) <= 3
    assert len(set(ours)) <= 2


COMPARES_CONFIGS = ("runs.compare", "runs.listing", "runs.record", "runs.reproduce")
"""These read the configs of runs, and so name their keys."""


def config_keys(modules: Mapping[str, str]) -> list[str]:
    """Texts below the root that name a key of the config, where only an interface knows what it is called."""
    keys = [key for key, _ in walk(TrainConfig)] + ["data.preprocess", "data.augment", "module.optimizer.lr"]
    pattern = re.compile(rf"(?<![\w./])({'|'.join(map(re.escape, keys))})(?![\w(]|\.[a-z])")
    found = []
    for name, source in modules.items():
        if LAYER[name.partition(".")[0]] >= LAYER["config"] or name in COMPARES_CONFIGS:
            continue
        parsed = ast.parse(source)
        documented = {
            id(node.value)
            for node in ast.walk(parsed)
            if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        }
        for node in ast.walk(parsed):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in documented:
                found += [f"{name}, line {node.lineno}: {key}" for key in pattern.findall(node.value) if "." in key]
    return found


def test_below_the_root_no_text_names_a_key_of_the_config() -> None:
    modules = tree()
    assert config_keys(modules) == []
    for line in ('raise ValueError("data.batch_size: expected a number")', 'X = f"set data.root={Y} or not"'):
        assert config_keys({**modules, "data.loader": f"{modules['data.loader']}\n{line}\n"})


def test_every_argument_that_a_message_names_has_a_name_in_the_config() -> None:
    used = {name for source in tree().values() for name in re.findall(r"\barg\.([a-z_0-9]+)", source)}
    assert used - {"batch_size"} <= set(NAMES)
    schema = {key for key, _ in walk(TrainConfig)} | {"data.preprocess", "data.augment", "module.optimizer.lr"}
    assert {key for key in NAMES.values() if key is not None} <= schema
