"""`sightline runs` and `sightline diff`: what is listed of a run in any state, what differs between two runs, and that
a damaged run is named and does not stop the command."""

from __future__ import annotations

import gzip
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from helpers.commands import Command, python
from sightline import cli
from sightline.core.errors import ArtifactError, ConfigError
from sightline.core.mappings import flatten
from sightline.inference.manifest import checksummed, read_manifest
from sightline.metrics.direction import metric_mode
from sightline.report.compare import MISSING, compare, compare_logs, open_record
from sightline.report.listing import find_runs, list_runs
from sightline.report.record import lower_is_better, read_record
from sightline.runs.directory import Run

Make = Callable[..., Path]


@pytest.fixture
def make(digits_run: Path, tmp_path: Path) -> Make:
    """`make("b", config={"trainer.max_epochs": 9}, data=…)` copies the trained run below `runs` and changes its files;
    a function gets the content of the file."""

    def copy(name: str, **changes: Any) -> Path:
        run = tmp_path / "runs" / name
        shutil.copytree(digits_run, run, ignore=shutil.ignore_patterns("*.ckpt", "*.safetensors", "predictions"))
        for key, value in changes.pop("config", {}).items():
            content = yaml.safe_load((run / "config.yaml").read_text())
            *groups, last = key.split(".")
            group = content
            for part in groups:
                group = group[part]
            group[last] = value
            (run / "config.yaml").write_text(yaml.safe_dump(content))
        for file, change in changes.items():
            path = run / ("exported/sightline.json" if file == "manifest" else f"{file}.json")
            content = json.loads(path.read_text())
            change(content)
            path.write_text(json.dumps(checksummed(content) if file == "manifest" else content))
        return run

    return copy


def accuracy(value: float) -> Callable[[dict[str, Any]], None]:
    """A change of the manifest: the accuracy on the test split."""

    def change(manifest: dict[str, Any]) -> None:
        manifest["metrics"]["test"]["accuracy"] = value

    return change


def unfinished(run: Path, epochs: int = 1) -> Path:
    """Changes a run to the state after it was killed during an epoch."""
    shutil.rmtree(run / "exported")
    lines = (run / "log.jsonl").read_text().splitlines(keepends=True)
    ends = [number for number, line in enumerate(lines, start=1) if "train_loss" in line]
    (run / "log.jsonl").write_text("".join(lines[: ends[epochs - 1]]) + '{"step": 3, "lo')
    return run


def table(text: str) -> list[dict[str, str]]:
    header, *rows = (line.split("\t") for line in text.splitlines())
    return [dict(zip(header, row, strict=True)) for row in rows]


# ---- runs ----


def test_runs_prints_every_run_as_a_row_for_a_pipe(make: Make, here: Command) -> None:
    make("a")
    long = "a-name-" * 20
    make(f"2026-11-20/{long}", manifest=accuracy(0.5))
    unfinished(make("killed"))
    done = here("runs")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    rows = {row["name"]: row for row in table(done.stdout)}
    assert set(rows) == {"a", f"2026-11-20/{long}", "killed"}
    assert (rows["a"]["state"], rows["a"]["epochs"], rows["a"]["network"]) == ("finished", "2/2", "SmallCNN")
    assert rows["a"]["data"] == "digits"
    assert rows["a"]["time"].startswith("20")
    assert rows[f"2026-11-20/{long}"]["test_accuracy"] == "0.5000"
    killed = rows["killed"]
    assert (killed["state"], killed["epochs"], killed["test_accuracy"]) == ("unfinished", "1/2", "")
    assert float(killed["best_val_loss"]) > float(rows["a"]["best_val_loss"])


def test_metrics_sort_the_best_first_and_mark_it(make: Make, tmp_path: Path) -> None:
    make("low", manifest=accuracy(0.2))
    make("high", manifest=accuracy(0.9))
    unfinished(make("none"))

    def names(**options: Any) -> list[str]:
        return [row["name"] for row in list_runs(tmp_path / "runs", **options).rows]

    assert names(sort="test_accuracy") == ["high", "low", "none"]
    assert names(sort="test_accuracy", reverse=True) == ["low", "high", "none"]
    assert names(sort="name") == ["high", "low", "none"]
    assert names(sort="best_val_loss")[-1] == "none"
    listing = list_runs(tmp_path / "runs", sort="test_accuracy")
    assert (0, "test_accuracy") in listing.best
    assert not {(1, "test_accuracy"), (0, "name")} & listing.best
    assert {row for row, column in listing.best if column == "best_val_loss"} == {0, 1}


def test_config_keys_can_be_columns_and_sort_keys(make: Make, tmp_path: Path) -> None:
    make("a", config={"module.optimizer.lr": 0.1})
    make("b", config={"module.optimizer.lr": 1e-5})
    make("c", config={"module.optimizer": {"_target_": "torch.optim.Rprop"}})
    listing = list_runs(tmp_path / "runs", sort="module.optimizer.lr", columns=["module.optimizer._target_", "test_f1"])
    assert listing.columns[-3:] == ("module.optimizer._target_", "test_f1", "module.optimizer.lr")
    assert [row[-1] for row in listing.cells()] == ["1e-05", "0.1", ""]
    assert [row[-3] for row in listing.cells()] == ["torch.optim.AdamW", "torch.optim.AdamW", "torch.optim.Rprop"]


def test_a_column_that_no_run_has_is_refused(make: Make, tmp_path: Path) -> None:
    make("a")
    message = r"--sort: no run has the column 'test_acuracy'. Did you mean 'test_accuracy'\?"
    with pytest.raises(ConfigError, match=message):
        list_runs(tmp_path / "runs", sort="test_acuracy")
    with pytest.raises(ConfigError, match=r"--columns: 'module.loss' is a group of keys\. .* module.loss._target_"):
        list_runs(tmp_path / "runs", columns=["module.loss"])


@pytest.mark.parametrize(
    ("file", "content", "problem"),
    [
        ("config.yaml", "a: [", "config.yaml' cannot be read as YAML"),
        ("config.yaml", None, "config.yaml' is missing"),
        ("data.json", '{"name": "dig', "data.json' cannot be read"),
        ("environment.json", "[]", "environment.json' is damaged: expected an object, found list"),
        ("exported/sightline.json", "{", "sightline.json' is damaged"),
        ("log.jsonl", '{"step": 1}\nx\n{"step": 3}\n', "log.jsonl', line 2: expected a JSON object with 'step'"),
    ],
)
def test_a_damaged_run_is_listed_with_its_problem(
    make: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str], file: str, content: str | None, problem: str
) -> None:
    make("good")
    path = make("bad") / file
    path.unlink() if content is None else path.write_text(content)
    with pytest.raises(SystemExit) as exit_info:
        cli.main(["runs", str(tmp_path / "runs")])
    output = capsys.readouterr()
    assert exit_info.value.code == 0
    states = {row["name"]: row["state"] for row in table(output.out)}
    assert states == {"good": "finished", "bad": "damaged"}
    assert problem in output.err
    assert output.err.count("\n") == 1
    with pytest.raises(SystemExit) as exit_info:
        cli.main(["runs", str(tmp_path / "runs"), "--json"])
    problems = {row["name"]: row["problems"] for row in json.loads(capsys.readouterr().out)}
    assert problems["good"] == []
    assert problem in problems["bad"][0]


@pytest.mark.parametrize("content", ["trainer: 3\nmodule: [1]\ndata: x\nname: 5\n", "module: {network: 7}\n", ""])
def test_a_config_of_another_shape_does_not_crash(make: Make, tmp_path: Path, content: str) -> None:
    (make("odd") / "config.yaml").write_text(content)
    (row,) = list_runs(tmp_path / "runs").rows
    assert (row["name"], row["epochs"], row["state"]) == ("odd", 2, "unfinished")


def test_only_runs_are_listed_each_once_and_none_inside_another(make: Make, tmp_path: Path) -> None:
    run = make("a")
    shutil.copytree(run, run / "copy")
    (tmp_path / "runs" / ".hydra").mkdir()
    (tmp_path / "runs" / ".hydra" / "config.yaml").write_text("a: 1\n")
    (tmp_path / "runs" / "other").mkdir()
    (tmp_path / "runs" / "other" / "config.yaml").write_text("a: 1\n")
    (tmp_path / "runs" / "A-link").symlink_to(run)
    (tmp_path / "runs" / "loop").symlink_to(tmp_path / "runs")
    assert [each.path for each in find_runs(tmp_path / "runs")] == [run]
    assert [row["name"] for row in list_runs(run).rows] == ["a"]


def test_a_run_with_increased_epochs_is_not_finished(make: Make) -> None:
    assert read_record(Run(make("a", config={"trainer.max_epochs": 5}))).state == "unfinished"


def test_a_copy_keeps_the_start_time_of_its_run(make: Make) -> None:
    start = read_record(Run(make("a"))).began
    assert start is not None
    run = make("digits-20240229-133700-2")
    (run / "environment.json").write_text("{}")  # as an older version wrote it
    from_name = read_record(Run(run)).began
    assert from_name is not None
    assert start - from_name > 3600 * 24 * 300
    ((run := make("b")) / "environment.json").write_text("{}")
    assert read_record(Run(run)).began is None


@pytest.mark.parametrize(
    ("node", "name"),
    [
        ({"_target_": "torchvision.models.resnet18"}, "resnet18"),
        ({"_target_": "timm.create_model", "model_name": "vit_tiny_patch16_224"}, "vit_tiny_patch16_224"),
        ({"layers": [{"_target_": "torch.nn.Flatten"}, {"_target_": "torch.nn.LazyLinear"}]}, "2 layers"),
        ({"class": "mynets.Tiny"}, "Tiny"),
    ],
)
def test_the_short_name_of_a_network(make: Make, node: dict[str, Any], name: str) -> None:
    assert read_record(Run(make("a", config={"module.network": node}))).network == name


def test_a_directory_without_runs(here: Command, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    done = here("runs", "empty")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "sightline: no runs in 'empty'\n")
    done = here("runs", "emtpy")
    assert done.returncode == 2
    assert done.stderr == "sightline: The directory 'emtpy' does not exist. Did you mean 'empty'?\n"


def test_a_terminal_shows_a_table_with_the_best_in_bold(
    make: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    make("low", manifest=accuracy(0.2))
    make("high", manifest=accuracy(0.9))
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    for columns in ("120", "40"):
        monkeypatch.setenv("COLUMNS", columns)
        with pytest.raises(SystemExit):
            cli.main(["runs", str(tmp_path / "runs")])
        output = capsys.readouterr().out
        assert "\x1b[1m  0.9000\x1b[0m" in output
        assert "  0.2000" in output
        assert "unfinished" not in output
        assert "finished" in output  # no word is split, however narrow the terminal is


# ---- diff ----


def test_a_run_is_the_same_as_its_copy(make: Make, here: Command) -> None:
    def environment(content: dict[str, Any]) -> None:
        content["began"] = "2020-01-01T00:00:00+00:00"
        content["runtime"] = "channels first: 7.21 ms a step"

    make("a")
    make("b", environment=environment)
    done = here("diff", "runs/a/exported", "runs/b", "--exit-code")
    assert done.returncode == 0, done.stderr
    heads, *sections = done.stdout.strip().split("\n\n")
    assert [line.split()[:3] for line in heads.splitlines()] == [
        ["A", "runs/a", "finished"],
        ["B", "runs/b", "finished"],
    ]
    assert sections == [f"{name}\n  same" for name in ("config", "data", "environment", "training", "metrics")]


def changed(make: Make) -> tuple[Path, Path]:
    """Two runs that differ in everything."""

    def data(content: dict[str, Any]) -> None:
        content["classes"] = [*content["classes"][:-1], "ten"]
        content["splits"]["test"]["images"] = 300
        content["fingerprint"]["test"] = "0" * 64
        content["fingerprint"]["val"] = "1" * 64

    def environment(content: dict[str, Any]) -> None:
        content["python"] = "3.99.0"
        content["packages"]["numpy"] = "9.9"
        content["packages"]["new.package"] = "1"
        content["torch"]["threads"] = 64
        content["git"] = {"commit": "abc", "diff": "+\udc80", "diff_cut": False, "untracked": ["\udcff.py"]}

    network = {"layers": [{"_target_": "torch.nn.Flatten"}]}
    config = {"module.network": network, "module.optimizer.lr": 1e-5, "run.name": "b", "data.cache_limit": float("inf")}
    b = make("b", config=config, data=data, environment=environment, manifest=accuracy(0.99999))
    return make("a", manifest=accuracy(0.5)), b


def test_differences_are_listed_by_section(make: Make, here: Command) -> None:
    changed(make)
    done = here("diff", "runs/a", "runs/b")
    assert done.returncode == 0, done.stderr
    lines = [" ".join(line.split()) for line in done.stdout.splitlines()]
    for line in (
        "module.network._target_ sightline.models.networks.SmallCNN -> (none)",
        "module.network.layers[0]._target_ (none) -> torch.nn.Flatten",
        "module.optimizer.lr 0.003 -> 1e-05",
        "classes added: ten",
        "classes removed: 9",
        "train 1258 images, the same",
        "val 180 images, different images or labels",
        "test 359 -> 300 images, different images or labels",
        "torch.threads 1 -> 64",
        "packages.new.package (none) -> 1",
        "training",
        "test_accuracy 0.5000 1.0000 +0.5000",
    ):
        assert line in lines, done.stdout
    assert "run.name" not in done.stdout
    assert lines[lines.index("training") + 1] == "same"


def test_diff_as_json(make: Make, here: Command) -> None:
    a, b = changed(make)
    done = here("diff", a, b, "--json", "--exit-code")
    assert done.returncode == 1, done.stderr
    content = json.loads(done.stdout, parse_constant=pytest.fail)
    assert content["config"]["module.optimizer.lr"] == {"a": 0.003, "b": 1e-5}
    assert content["config"]["module.network.layers[0]._target_"] == {"b": "torch.nn.Flatten"}
    assert content["splits"]["val"] == {"a": 180, "b": 180, "same": False}
    assert content["environment"]["git.commit"]["b"] == "abc"
    assert content["environment"]["git.diff"]["b"].startswith("sha256 ")
    assert content["metrics"]["test_accuracy"]["change"] == pytest.approx(0.49999)
    assert content["training"] == {}


def test_the_exit_code_depends_only_on_config_and_data(make: Make) -> None:
    a = open_record(make("a"))
    metrics = compare(a, open_record(make("b", manifest=accuracy(0.1))))
    assert metrics.same_input
    assert list(metrics.metrics) == ["test_accuracy"]
    order = compare(a, open_record(make("c", data=lambda content: content["classes"].reverse())))
    assert not order.same_input


def write_log(run: Path, *rows: dict[str, Any]) -> Run:
    run.mkdir(exist_ok=True)
    (run / "log.jsonl").write_text("".join(f"{json.dumps({'seconds': len(str(run)), **row})}\n" for row in rows))
    return Run(run)


def point(step: int, loss: float, **more: Any) -> dict[str, Any]:
    return {"step": step, "epoch": step // 10, "loss": loss, "images_per_second": step, "lr": 0.1, **more}


def test_the_first_different_step_is_reported(make: Make, here: Command) -> None:
    run = make("b")
    make("a")
    rows = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    write_log(run, rows[0], {**rows[1], "train_accuracy": 0.5, "val_loss": 7.0})
    done = here("diff", "runs/a", "runs/b")
    step, before = rows[1]["step"], rows[1]["train_accuracy"]
    lines = done.stdout[done.stdout.index("\ntraining\n") :].splitlines()
    assert lines[2] == f"  first difference: step {step} (epoch 1): train_accuracy {before:.4g} -> 0.5"
    content = json.loads(here("diff", "runs/a", "runs/b", "--json").stdout)
    assert content["first_difference"] == {
        "step": step,
        "epoch": 1,
        "quantity": "train_accuracy",
        "a": before,
        "b": 0.5,
        "agreed": rows[0]["step"],
    }
    assert content["log"] == {"points": 2, "only_a": 0, "only_b": 0}


def test_a_log_that_is_the_start_of_the_other_is_the_same_so_far(
    make: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a, b = make("a"), unfinished(make("b"))
    for runs, end in (((a, b), "where B ends; A continues"), ((b, a), "where A ends; B continues")):
        with pytest.raises(SystemExit):
            cli.main(["diff", *map(str, runs)])
        assert f"  the same up to step {read_record(Run(b)).steps}, {end}\n" in capsys.readouterr().out


def test_logs_are_compared_at_their_common_points(tmp_path: Path) -> None:
    end = {"step": 10, "epoch": 0, "train_loss": 1.0}
    often = write_log(tmp_path / "a", point(2, 4.0), point(4, 3.0), point(8, 2.0), end)
    rarely = write_log(tmp_path / "b", point(4, 3.5), point(8, 2.0), end)  # a mean over more steps is not a difference
    comparison = compare_logs(often, rarely)
    assert (comparison.first, comparison.points, comparison.alone) == (None, 3, (1, 0))
    write_log(tmp_path / "b", point(4, 3.5, lr=0.2), point(8, 2.0), end)
    first = compare_logs(often, rarely).first
    assert first is not None
    assert (first.place, first.quantity, first.values, first.agreed) == ("step 4 (epoch 0)", "lr", (0.1, 0.2), 0)
    write_log(tmp_path / "b", point(2, 4.0), point(4, 3.0, top5=1.0), point(8, 2.0), end)
    assert compare_logs(often, rarely).same
    assert not compare_logs(often, rarely, whole=True).same
    assert compare_logs(often, write_log(tmp_path / "c", point(3, 1.0))).points == 0
    assert compare_logs(Run(tmp_path / "none"), Run(tmp_path / "none")).same


def test_images_that_differ_are_listed_by_name(make: Make, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = make("a"), make("b", data=lambda content: content["fingerprint"].update(val="1" * 64))
    head = "split,id,label,bytes,pixels,content\n"
    for run, text in ((a, "val,3.png,1,9,aa,\nval,4.png,1,9,bb,\n"), (b, "val,3.png,2,9,aa,\nval,5.png,1,9,cc,\n")):
        (run / "images.csv.gz").write_bytes(gzip.compress((head + text).encode()))
    with pytest.raises(SystemExit):
        cli.main(["diff", str(a), str(b)])
    lines = capsys.readouterr().out.splitlines()
    for line in ("  relabelled: 3.png (val, 1 -> 2)", "  added: 5.png (val)", "  removed: 4.png (val)"):
        assert line in lines
    (a / "images.csv.gz").unlink()  # an older version wrote none
    comparison = compare(open_record(a), open_record(b))
    assert comparison.images is None
    assert comparison.data["fingerprint.val"][1] == "1" * 64


def test_an_unfinished_run_can_be_compared(make: Make, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    a, b = make("a"), unfinished(make("b"))
    comparison = compare(open_record(a), open_record(b))
    assert comparison.training["state"] == ("finished", "unfinished")
    assert comparison.training["epochs"] == (2, 1)
    assert comparison.metrics["test_loss"][1] is MISSING
    unfinished(make("c"))
    with pytest.raises(SystemExit):
        cli.main(["diff", str(b), str(tmp_path / "runs" / "c")])
    assert "neither run has evaluated an exported model yet" in capsys.readouterr().out


def test_a_missing_or_unreadable_run_is_an_error(make: Make, here: Command) -> None:
    make("digits")
    (make("truncated") / "data.json").write_text("{")
    done = here("diff", "runs/digits", "runs/digist")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "sightline: there is no run 'runs/digist'. Did you mean 'digits'?\n"
    with pytest.raises(ArtifactError, match=r"truncated' cannot be compared: '.*data.json' cannot be read"):
        open_record(make("x").parent / "truncated")


# ---- both ----


def test_neither_command_loads_torch(make: Make, tmp_path: Path) -> None:
    changed(make)
    for arguments in (["runs"], ["runs", "--json"], ["diff", "runs/a", "runs/b"]):
        code = (
            f"import sys\nfrom sightline.cli import main\ntry:\n    main({arguments!r})\nexcept SystemExit:\n    pass\n"
        )
        output = python(f"{code}print({{'torch', 'numpy', 'PIL', 'hydra'}} & set(sys.modules))", cwd=tmp_path)
        assert output.splitlines()[-1] == "set()"


@pytest.mark.parametrize(
    "metric", ["val_loss", "test_accuracy", "val_f1", "test_nll", "val_ece", "error", "top5", "mae"]
)
def test_the_direction_of_a_metric_is_the_same_as_in_training(metric: str) -> None:
    assert lower_is_better(metric) == (metric_mode(metric) == "min")
    assert lower_is_better(metric, "min")
    assert not lower_is_better(metric, "max")


def test_flatten_keeps_every_value() -> None:
    nested = {"a": {"b": 1, "c": {}}, "d": [{"e": [1, 2]}, 3], "f": []}
    assert flatten(nested) == {"a.b": 1, "a.c": {}, "d[0].e": [1, 2], "d[1]": 3, "f": []}


def test_an_unreadable_manifest_is_an_error_with_its_reason(digits_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(path: Path) -> Any:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("sightline.inference.manifest.read_json", refused)
    with pytest.raises(ArtifactError, match=r"cannot be read: .*Permission denied"):
        read_manifest(digits_run / "exported")
