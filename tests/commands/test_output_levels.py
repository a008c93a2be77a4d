"""`--quiet`, `--verbose`, `NO_COLOR`, `sightline env` and `--json`: what is printed where, and what stays out."""

from __future__ import annotations

import json
import logging
import os
import re
import subprocess
import sys
from pathlib import Path

import pexpect
import pytest

import sightline
from helpers.commands import Command, run_command
from helpers.images import write_folders, write_image

ANSI_COLOUR = re.compile(r"\x1b\[(?:\d+;)*[349]\d[;m]")


def train(cwd: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return run_command("train", "trainer.max_epochs=1", "run.name=run", *arguments, cwd=cwd)


def test_quiet_prints_nothing_for_a_training_that_succeeds(tmp_path: Path) -> None:
    done = train(tmp_path, "--quiet")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert (tmp_path / "runs" / "run" / "exported" / "sightline.json").is_file()


def test_quiet_is_no_setting_of_the_run(tmp_path: Path) -> None:
    """Its config is that of a run that prints, so that both are the same run."""
    assert train(tmp_path, "-q").returncode == 0
    loud = run_command("train", "trainer.max_epochs=1", "run.name=loud", cwd=tmp_path)
    configs = [(tmp_path / "runs" / name / "config.yaml").read_text() for name in ("run", "loud")]
    assert configs[0].replace("name: run", "name: loud") == configs[1]
    assert "epoch 1/1" in loud.stdout


def test_quiet_keeps_warnings_errors_and_results(tmp_path: Path, here: Command, digits_run: Path) -> None:
    write_folders(tmp_path / "data", {"a": 20, "b": 20})
    (tmp_path / "data" / "a" / "0.png").write_bytes(b"")
    done = here("--quiet", "train", "data.root=data", "trainer.max_epochs=1")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("sightline: ")
    for arguments in (
        ["runs", digits_run.parent, "-q"],
        ["-q", "load", digits_run],
        ["evaluate", "--quiet", digits_run],
    ):
        done = here(*arguments)
        assert done.returncode == 0
        assert "accuracy" in done.stdout


def test_verbose_prints_the_traceback_of_an_error(here: Command) -> None:
    plain = here("train", "trainer.max_epoch=1")
    verbose = here("-v", "train", "trainer.max_epoch=1")
    assert plain.returncode == verbose.returncode == 2
    assert "Traceback" not in plain.stderr
    assert "Traceback" in verbose.stderr
    assert verbose.stderr.endswith(plain.stderr)


def test_verbose_reports_more_than_a_plain_run(tmp_path: Path) -> None:
    write_folders(tmp_path / "data", {"a": 20, "b": 20})
    plain = train(tmp_path, "data.root=data", "run.dir=one", "data.cache_dir=cache")
    verbose = train(tmp_path, "data.root=data", "run.dir=two", "data.cache_dir=cache", "--verbose")
    assert verbose.returncode == 0
    assert "cache" in verbose.stderr
    assert "cache" not in plain.stderr


def test_options_after_two_dashes_are_arguments(here: Command) -> None:
    done = here("runs", "--", "--quiet")
    assert done.returncode == 2
    assert "'--quiet'" in done.stderr


def test_notes_and_warnings_are_on_standard_error(tmp_path: Path) -> None:
    """So that standard output has the results alone."""
    for name in ("a", "b"):
        for i in range(20):
            write_image(tmp_path / "data" / name / f"{i}.png")
    done = run_command("train", "runtime=auto", "trainer.max_epochs=1", cwd=tmp_path)
    assert done.returncode == 0
    assert "runtime: " in done.stderr
    assert "runtime: " not in done.stdout


def test_the_library_logs_and_configures_nothing(tmp_path: Path) -> None:
    """A program that imports it sees INFO only if it asks for it, and no handler is added."""
    code = (
        "import logging, sys\nif sys.argv[1] == 'on':\n"
        "    logging.basicConfig(level=logging.INFO, format='LOG %(name)s %(message)s')\n"
        "import sightline\nsightline.fit({'trainer': {'max_epochs': 1, 'progress': False, 'threads': 'auto'}})\n"
        "print(logging.getLogger('sightline').handlers)"
    )
    shown = {
        mode: subprocess.run(
            [sys.executable, "-c", code, mode], cwd=tmp_path, capture_output=True, text=True, check=True
        )
        for mode in ("off", "on")
    }
    assert [done.stdout for done in shown.values()] == ["[]\n", "[]\n"]
    assert shown["off"].stderr == ""
    assert "LOG sightline runtime: " in shown["on"].stderr


def test_warnings_of_the_library_reach_a_program_without_logging() -> None:
    code = "from sightline.core.log import logger\nlogger.info('hidden')\nlogger.warning('shown')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "shown\n")


def test_no_color_is_obeyed_on_a_terminal(tmp_path: Path) -> None:
    """A progress bar has colours, unless NO_COLOR is set."""
    write_folders(tmp_path / "data", {"a": 40, "b": 40})
    shown = {}
    for name, setting in {"colour": {}, "none": {"NO_COLOR": "1"}}.items():
        environment = {key: value for key, value in os.environ.items() if key not in ("NO_COLOR", "FORCE_COLOR")}
        child = pexpect.spawn(
            sys.executable,
            ["-m", "sightline", "inspect", "data"],
            cwd=str(tmp_path),
            env={**environment, "TERM": "xterm-256color", **setting},
            encoding="utf-8",
            timeout=120,
            dimensions=(40, 120),
        )
        child.expect(pexpect.EOF)
        shown[name] = child.before
    assert all("examining" in text for text in shown.values())
    assert ANSI_COLOUR.search(shown["colour"])
    assert not ANSI_COLOUR.search(shown["none"])


def test_env_prints_what_a_bug_report_needs(here: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SIGHTLINE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("MY_SECRET", "hunter2")
    lines = dict(re.split(r"[ =]+", line, maxsplit=1) for line in here("env").stdout.splitlines())
    assert lines["sightline"].startswith(sightline.__version__)
    assert lines["python"].startswith(".".join(map(str, sys.version_info[:3])))
    assert lines["cache"].endswith("cache")
    assert lines["SIGHTLINE_CACHE"].endswith("cache")
    assert "timm" in lines["vision"]
    assert "dev" not in lines
    assert "hunter2" not in here("env").stdout


def test_env_as_json_names_neither_the_host_nor_the_user(here: Command) -> None:
    done = here("env", "--json")
    found = json.loads(done.stdout)
    assert set(found) == {
        "sightline", "python", "platform", "machine", "torch", "cuda", "cache", "extras", "variables"
    }  # fmt: skip
    assert found["extras"]["parquet"]["pyarrow"]
    assert os.uname().nodename not in done.stdout
    assert str(Path.home()) + "/" not in done.stdout


@pytest.mark.parametrize(
    "arguments",
    [("summary",), ("cache",), ("evaluate", "RUN"), ("load", "RUN"), ("diff", "RUN", "RUN"), ("runs", "DIR")],
)
def test_every_listing_prints_json(here: Command, digits_run: Path, arguments: tuple[str, ...]) -> None:
    places = {"RUN": str(digits_run), "DIR": str(digits_run.parent)}
    done = here(*(places.get(word, word) for word in arguments), "--json")
    assert done.returncode == 0, done.stderr
    assert isinstance(json.loads(done.stdout), dict | list)


def test_the_json_of_a_summary_and_of_an_evaluation_have_what_the_tables_have(here: Command, digits_run: Path) -> None:
    summary = json.loads(here("summary", "--json").stdout)
    assert summary["input"] == [1, 8, 8]
    assert summary["parameters"] == sum(layer["parameters"] for layer in summary["layers"])
    evaluated = json.loads(here("evaluate", digits_run, "--json").stdout)
    manifest = json.loads((digits_run / "exported" / "sightline.json").read_text())
    assert evaluated["splits"]["test"]["metrics"] == manifest["metrics"]["test"]
    assert sorted(evaluated["splits"]["test"]["classes"]) == [str(i) for i in range(10)]
    assert evaluated["left_out"] == []


def test_lr_find_as_json_has_every_step(here: Command, tmp_path: Path) -> None:
    done = here("lr-find", "--steps", "30", "--json", "--out", "lr.png", "trainer.progress=false")
    found = json.loads(done.stdout)
    assert len(found["lrs"]) == len(found["losses"]) <= 30
    assert (tmp_path / found["values"]).is_file()
    assert found["key"] == "module.optimizer.lr"


def test_the_log_level_of_the_command_is_set_again_by_each_command(here: Command) -> None:
    here("-q", "env")
    assert logging.getLogger("sightline").level == logging.WARNING
    here("env")
    assert logging.getLogger("sightline").level == logging.INFO


def test_quiet_on_a_terminal_draws_no_bar_and_keeps_warnings(tmp_path: Path) -> None:
    """A bar would replace the standard streams by ones that print nothing."""
    write_folders(tmp_path / "data", {"a": 30, "b": 30})
    (tmp_path / "data" / "a" / "0.png").write_bytes(b"")
    command = ["-m", "sightline", "-q", "train", "data.root=data", "data.on_bad=skip", "trainer.max_epochs=1"]
    child = pexpect.spawn(sys.executable, command, cwd=str(tmp_path), encoding="utf-8", timeout=120)
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 0
    assert "epoch" not in child.before
    assert "sightline: Images left out because they cannot be read: 1." in child.before


def test_a_closed_standard_error_does_not_end_a_run(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom sightline.core.log import logger, show_log\nshow_log()\nsys.stderr.close()\n"
        "logger.warning('nobody reads this')\nprint('done')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "done\n"
