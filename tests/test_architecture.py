"""The structure of the package: allowed imports, no cycles, public names, the cost of an import, the depth of a
step."""

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
from helpers.commands import python
from sightline.config.names import NAMES
from sightline.config.schema import TrainConfig
from sightline.config.typed import walk
from sightline.core.lazy import public_names
from sightline.core.types import Batch, TrainState
from sightline.engine.tasks import SupervisedTask
from sightline.engine.trainer import Trainer

SOURCE = Path(sightline.__file__).parent
PUBLIC = public_names(SOURCE / "__init__.pyi")
LAYERS: list[dict[str, tuple[str, ...]]] = [
    {"core": ("core",)},
    {"config": ("config",), "models": ("models",), "metrics": ("metrics",), "optim": ("optim",), "data": ("data",)},
    {"engine": ("engine",)},
    {"runs": ("runs",), "inference": ("inference",)},
    {"session": ("session",), "checks": ("checks",)},
    {"compose": ("compose",), "streaming": ("streaming",), "serve": ("serve",)},
    {"report": ("report",), "sweep": ("sweep",)},
    {"params": ("params",), "learner": ("learner",), "components": ("components",)},
    {"commands": ("commands", "cli", "__main__")},
]
"""The packages in layers, lowest first: a package may import itself and lower layers, unless NARROW restricts it."""
GROUP = {module: group for layer in LAYERS for group, modules in layer.items() for module in modules}
LAYER = {group: number for number, layer in enumerate(LAYERS) for group in layer}
_ALL = tuple(LAYER)
NARROW: dict[str, tuple[str, ...]] = {
    "config": ("core",),  # its errors are reported before torch is imported
    "engine": ("core", "metrics", "optim"),
    "runs": ("core", "data", "models", "metrics", "optim", "engine"),
    "inference": ("core", "data", "models", "metrics", "optim", "engine"),
    "session": tuple(group for group in _ALL if LAYER[group] < 4 and group != "config"),
    "streaming": (*(group for group in _ALL if LAYER[group] < 3 and group != "config"), "inference"),
    "serve": (*(group for group in _ALL if LAYER[group] < 3 and group != "config"), "inference"),
}
DATA: dict[str, tuple[str, ...]] = {
    "records": (),
    "images": ("records",),
    "sources": ("records", "images"),
    "cache": ("records", "images", "sources"),
    "augment": ("records", "images", "sources", "cache"),
    "loading": ("records", "images", "sources", "cache"),
}
"""The order within `data`: the parts that each part may import."""
WITHOUT_TORCH = "core"
"""Its modules import torch only inside functions."""
ONLY_IN = {
    "hydra": ("commands",),
    "omegaconf": ("commands",),
    "optuna": ("sweep",),
    "tensorboard": ("runs",),
    "matplotlib": ("report",),
    "torchvision": (),
    "torchmetrics": (),
    "timm": (),
}


def tree() -> dict[str, str]:
    """Maps each dotted module name below the package to its source."""
    modules = {}
    for file in SOURCE.rglob("*.py"):
        parts = file.relative_to(SOURCE).with_suffix("").parts
        modules[".".join(part for part in parts if part != "__init__") or "__init__"] = file.read_text(encoding="utf-8")
    return modules


def imports(source: str, top_level: bool = False) -> list[str]:
    """Every module that a source imports anywhere in it; with `top_level`, only those at its top."""
    names = []

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.Import):
            names.extend(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.module, "imports name the package"
            assert not node.level, "imports name the package"
            names.extend(f"{node.module}.{alias.name}" for alias in node.names)
        if not top_level or isinstance(node, ast.Module):
            for child in ast.iter_child_nodes(node):
                visit(child)

    visit(ast.parse(source))
    return names


def allowed(group: str, to: str) -> bool:
    """Whether modules of one group may import those of another."""
    return group == to or (to in NARROW[group] if group in NARROW else LAYER[to] < LAYER[group])


def allowed_in_data(name: str, to: str) -> bool:
    """Whether a module of `data` may import another one."""
    part, other = (dotted.split(".")[1] if "." in dotted else "" for dotted in (name, to))
    return part == other or other in DATA.get(part, ())


def breaches(modules: Mapping[str, str]) -> list[str]:
    """The imports that are not allowed, including those for types."""
    wrong = []
    for name, source in modules.items():
        package = name.partition(".")[0]
        group = GROUP.get(package)
        if group == WITHOUT_TORCH and "torch" in {each.partition(".")[0] for each in imports(source, top_level=True)}:
            wrong.append(f"{name} imports torch when it is imported")
        for target in imports(source):
            root, _, rest = target.partition(".")
            if root in ONLY_IN and package not in ONLY_IN[root]:
                wrong.append(f"{name} imports {target}")
            if rest in PUBLIC:  # a public name: what counts is the module it is in
                rest = PUBLIC[rest].removeprefix("sightline.")
            to = GROUP.get(rest.partition(".")[0])
            if root != "sightline" or to is None or group is None:
                continue  # a name of the package itself, such as __version__
            if not allowed(group, to):
                wrong.append(f"{name} ({group}) imports {target} ({to})")
            if group == to == "data" and not allowed_in_data(name, rest):
                wrong.append(f"{name} imports {target}, against the order within data")
    return wrong


def cycles(modules: Mapping[str, str]) -> list[str]:
    """Import cycles, including those for types."""
    edges: dict[str, set[str]] = {}
    for name, source in modules.items():
        reached = set()
        for target in imports(source):
            parts = target.split(".")[1:] if target.startswith("sightline.") else []
            reached |= {".".join(parts[:n]) for n in range(1, len(parts) + 1)} & set(modules)
        parents = {".".join(name.split(".")[:n]) for n in range(1, name.count(".") + 1)}  # imported with it in any case
        edges[name] = reached - {name} - parents
    chains, visited = [], set()

    def walk(name: str, path: tuple[str, ...]) -> None:
        if name in path:
            chains.append(" -> ".join((*path[path.index(name) :], name)))
        elif name not in visited:
            for target in sorted(edges[name]):
                walk(target, (*path, name))
            visited.add(name)

    for name in edges:
        walk(name, ())
    return chains


def test_every_module_is_in_a_layer() -> None:
    packages = {name.partition(".")[0] for name in tree()} - {"__init__"}
    assert packages <= set(GROUP), f"no layer for {packages - set(GROUP)}"


def test_imports_follow_the_layers() -> None:
    assert breaches(tree()) == []


def test_no_import_cycles() -> None:
    assert cycles(tree()) == []


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("core.errors", "from sightline.metrics.meter import Meter"),
        ("core.errors", "import json, torch"),
        ("core.files", "from torch import Tensor"),
        ("engine.trainer", "from sightline import BatchLoader"),
        ("config.schema", "import sightline.metrics"),
        ("config.ranges", "from sightline.data.sources.open import KINDS"),
        ("data.loading.loader", "from sightline.models.spec import ModelSpec"),
        ("data.loading.loader", "if TYPE_CHECKING:\n    from sightline.models.spec import ModelSpec"),
        ("models.spec", "from sightline.data.cache.dataset import PackedDataset"),
        ("models.spec", "import torchvision"),
        ("metrics.meter", "from sightline.optim import build_optimizer"),
        ("optim.schedules", "from sightline.metrics.direction import metric_mode"),
        ("engine.trainer", "from sightline.data.loading.loader import BatchLoader"),
        ("engine.trainer", "from sightline.models.spec import ModelSpec"),
        ("engine.trainer", "from sightline.config.schema import TrainConfig"),
        ("inference.artifact", "def f():\n    from sightline.compose.assemble import fit"),
        ("inference.artifact", "from sightline.runs.directory import Run"),
        ("inference.artifact", "from sightline.config.schema import TrainConfig"),
        ("runs.directory", "from sightline.inference.manifest import MANIFEST"),
        ("runs.directory", "from sightline.config.schema import TrainConfig"),
        ("runs.directory", "from sightline.session import Session"),
        ("session", "from sightline.config.schema import TrainConfig"),
        ("session", "from sightline.compose.assemble import fit"),
        ("compose.assemble", "import hydra"),
        ("compose.assemble", "from sightline.report.record import read_record"),
        ("compose.assemble", "from sightline.commands.hydra_config import compose"),
        ("compose.assemble", "from sightline.params import train"),
        ("report.compare", "from sightline.params import train"),
        ("params.loop", "from sightline.learner.plan import TrainArguments"),
        ("learner.fitting", "from sightline.params.steps import UserSteps"),
        ("learner.fitting", "from sightline.commands.train import run"),
        ("data.records", "from sightline.data.images.decode import Pixels"),
        ("data.images.decode", "from sightline.data.sources.open import open_source"),
        ("data.sources.open", "from sightline.data.cache.pack import pack_splits"),
        ("data.sources.csv", "from sightline.data.augment.colour import ColorJitter"),
        ("data.cache.pack", "from sightline.data.loading.loader import BatchLoader"),
        ("data.augment.pipeline", "from sightline.data.loading.loader import BatchLoader"),
        ("data.loading.loader", "from sightline.data.augment.pipeline import augmentation_pipeline"),
    ],
)
def test_a_forbidden_import_is_reported(module: str, line: str) -> None:
    modules = tree()
    assert breaches({**modules, module: f"{modules[module]}\n{line}\n"})


@pytest.mark.parametrize("module", ["streaming.worker", "serve.app"])
@pytest.mark.parametrize("forbidden", ["session", "runs.directory", "config.schema"])
def test_packages_that_only_predict_do_not_import_training(module: str, forbidden: str) -> None:
    """Holds for packages that do not exist yet."""
    assert breaches({**tree(), module: f"import sightline.{forbidden}"})
    assert not breaches({**tree(), module: "from sightline.models.spec import ModelSpec"})


ROOT_ONLY = ("Trainer(", "Checkpointer(", ".locked(")


def roots(modules: Mapping[str, str]) -> list[str]:
    """Calls outside the session that assemble a training."""
    return [
        f"{name}: {call}"
        for name, source in modules.items()
        if name != "session" and not name.startswith("engine")
        for call in ROOT_ONLY
        if re.search(rf"(?<![\w.]){re.escape(call)}" if call[0] != "." else re.escape(call), source)
    ]


def test_only_the_session_assembles_a_training() -> None:
    """No interface locks a run, or creates a trainer or a checkpointer itself."""
    modules = tree()
    assert roots(modules) == []
    for call in ROOT_ONLY:
        assert call in modules["session"]
        line = f"made = {'run' if call.startswith('.') else ''}{call})"
        assert roots({**modules, "params.loop": f"{modules['params.loop']}\n{line}\n"}) == [f"params.loop: {call}"]


def test_a_cycle_is_reported() -> None:
    modules = tree()
    modules["data.sources.csv"] += "\nif TYPE_CHECKING:\n    import sightline.data.sources.open\n"
    assert any("data.sources.open" in chain and "data.sources.csv" in chain for chain in cycles(modules))


LONGEST, MOST_PARAMETERS = 60, 8
"""Limits for a function: its lines without the docstring, and its parameters without `self`."""
LONGER = {
    "data.augment.pipeline.augmentation_pipeline": "one parameter for each key of data.augment",
    "data.loading.loader.BatchLoader.__init__": "public: the arguments of a loader",
    "data.loading.sampler.Sampler.__init__": "the arguments that BatchLoader passes on",
    "data.sources.listing.build_source": "the arguments that open_source and as_source pass on",
    "data.sources.open.open_source": "one parameter for each key of data",
    "engine.tools.lr_finder.find_lr": "public: the arguments of the learning-rate finder",
    "engine.trainer.Trainer.__init__": "public: the arguments of a trainer",
}
"""Functions that may have more parameters, and why."""


def large_functions(modules: Mapping[str, str]) -> tuple[list[str], set[str]]:
    """(functions with too many lines, functions with too many parameters)."""
    long, wide = [], set()

    def visit(node: ast.AST, name: str) -> None:
        for child in ast.iter_child_nodes(node):
            if not isinstance(child, ast.FunctionDef | ast.ClassDef):
                continue
            qualified = f"{name}.{child.name}"
            visit(child, qualified)
            if isinstance(child, ast.ClassDef):
                continue
            first = child.body[0]
            documented = first.end_lineno - first.lineno + 1 if ast.get_docstring(child) and first.end_lineno else 0
            if (child.end_lineno or 0) - child.lineno + 1 - documented > LONGEST:
                long.append(qualified)
            arguments = child.args
            names = {each.arg for each in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)}
            if len(names - {"self", "cls"}) > MOST_PARAMETERS:
                wide.add(qualified)

    for module, source in modules.items():
        visit(ast.parse(source), module)
    return long, wide


def test_functions_are_short() -> None:
    """Functions with many parameters are listed with a reason."""
    long, wide = large_functions(tree())
    assert long == []
    assert wide == set(LONGER)
    body = "\n".join(f"    {letter} = 1" for letter in "abcdefgh" * 8)
    long, wide = large_functions({"m": f"class C:\n  def f(self):\n{body}\n\ndef g(a, b, c, d, e, f, g, h, i): ...\n"})
    assert (long, wide) == (["m.C.f"], {"m.g"})


def test_public_names() -> None:
    """Every public name can be imported, is documented, and is in the stub file that type checkers read."""
    for name in sightline.__all__:
        value = getattr(sightline, name)
        assert inspect.getdoc(value), name
    assert set(sightline.__all__) == set(PUBLIC)
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
    """The heavy libraries that a fresh interpreter has imported after running `code`."""
    output = python(f"import sys, json\n{code}\nprint(json.dumps([n.partition('.')[0] for n in sys.modules]))")
    return set(json.loads(output.splitlines()[-1])) & set(HEAVY)


def run_in_process(*arguments: str) -> str:
    return f"from sightline.cli import main\ntry:\n    main({list(arguments)!r})\nexcept SystemExit:\n    pass"


def test_import_and_help_are_light() -> None:
    assert loaded_after("import sightline") == set()
    assert loaded_after(run_in_process("--help")) == set()


@pytest.mark.parametrize(
    "arguments",
    [
        ("train", "trainer.max_epoch=1"),
        ("train", "trainer.max_epochs=many"),
        ("train", "experiment=mnits"),
        ("train", "module.network=1"),
        ("train", "--help"),
    ],
)
def test_a_config_error_is_reported_without_torch(arguments: tuple[str, ...]) -> None:
    assert not loaded_after(run_in_process(*arguments)) & {"torch", "numpy", "sklearn", "PIL"}


def test_the_package_adds_few_modules_to_torch() -> None:
    """The public names import no heavy library besides torch and its dependencies."""
    code = "import torch, sys\nbefore = set(sys.modules)\nimport sightline as s\n[getattr(s, n) for n in s.__all__]\n"
    output = python(f"{code}\nimport json\nprint(json.dumps([n.partition('.')[0] for n in set(sys.modules) - before]))")
    added = set(json.loads(output.splitlines()[-1]))
    assert not added & {"hydra", "omegaconf", "sklearn", "scipy", "tensorboard", "matplotlib", "torchvision", "timm"}


def test_the_digits_are_part_of_the_package() -> None:
    code = "from sightline.data.sources.open import open_source\nopen_source('digits', val=0.1, test=0.1, seed=0)"
    assert not loaded_after(code) & {"sklearn", "torch"}


class Deep(nn.Module):
    """Records the call stack of its forward."""

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


def test_at_most_three_frames_in_two_files_call_forward() -> None:
    model = Deep()
    state = TrainState(model, torch.optim.SGD(model.parameters(), lr=0.1))
    task = SupervisedTask(nn.CrossEntropyLoss())
    Trainer(task, state, [Batch(torch.randn(2, 4), torch.tensor([0, 1]))], max_epochs=1).fit()
    ours = [name for name in model.frames if Path(name).is_relative_to(SOURCE)]
    assert 1 <= len(ours) <= 3
    assert len(set(ours)) <= 2


def config_keys(modules: Mapping[str, str]) -> list[str]:
    """Strings below `compose` that name a config key. Only interfaces know how a setting is called."""
    keys = [key for key, _ in walk(TrainConfig)] + ["data.preprocess", "data.augment", "module.optimizer.lr"]
    pattern = re.compile(rf"(?<![\w./])({'|'.join(map(re.escape, keys))})(?![\w(]|\.[a-z])")
    matches = []
    for name, source in modules.items():
        group = GROUP.get(name.partition(".")[0], "commands")
        if group == "config" or LAYER[group] >= LAYER["compose"]:
            continue
        parsed = ast.parse(source)
        documented = {
            id(node.value)
            for node in ast.walk(parsed)
            if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        }
        for node in ast.walk(parsed):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in documented:
                matches += [f"{name}, line {node.lineno}: {key}" for key in pattern.findall(node.value) if "." in key]
    return matches


def test_below_compose_no_string_names_a_config_key() -> None:
    modules = tree()
    assert config_keys(modules) == []
    for line in ('raise ValueError("data.batch_size: expected a number")', 'X = f"set data.root={Y} or not"'):
        assert config_keys({**modules, "data.loading.loader": f"{modules['data.loading.loader']}\n{line}\n"})


def test_every_argument_that_a_message_names_has_a_name_in_the_config() -> None:
    used = {name for source in tree().values() for name in re.findall(r"\barg\.([a-z_0-9]+)", source)}
    assert used - {"batch_size"} <= set(NAMES)
    schema = {key for key, _ in walk(TrainConfig)} | {"data.preprocess", "data.augment", "module.optimizer.lr"}
    assert {key for key in NAMES.values() if key is not None} <= schema
