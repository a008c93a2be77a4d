"""The output of a run: `model_epoch_<e>.pt` files, TensorBoard curves and console lines."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from sightline.core.errors import ArtifactError, RunFailedError, first_line, join_names
from sightline.core.files import expand_user, stale_temporaries
from sightline.core.types import StepOutput, TrainState
from sightline.engine.checkpoint.content import checkpoint_content, numpy_globals
from sightline.engine.checkpoint.file import load_checksummed, save_checksummed
from sightline.engine.progress import Progress
from sightline.engine.trainer import Callback, Trainer, not_measured
from sightline.runs.recorders import CurveRecorder

FORMAT = 1
_RULE = "-" * 80


class EpochFilesCallback(Callback):
    """Writes `model_epoch_<e>.pt` files and TensorBoard curves.

    A file is written after epoch 0, every `save_freq` epochs from there, and after the last epoch. The curves are
    `loss/train` and `<metric>/train` at each step, `avg_loss/train` at each epoch, and `loss/test` and `<metric>/test`
    at the step of each evaluation. `names` are the names of the schedules, `monitors` the metrics that plateau
    schedules watch. Raises ConfigError if an evaluation does not measure one of them."""

    def __init__(
        self, logdir: Path, save_freq: int, names: Sequence[str], monitors: Sequence[str], curves: CurveRecorder
    ):
        self.logdir, self.save_freq, self.names = logdir, save_freq, tuple(names)
        self.monitors, self.curves = tuple(monitors), curves

    def on_fit_start(self, trainer: Trainer) -> None:
        """Removes temporary files of an earlier process that was killed."""
        for stale in stale_temporaries(self.logdir, "model_epoch_*.pt"):
            stale.unlink()

    def on_step_end(self, trainer: Trainer, output: StepOutput) -> None:
        """Adds the step's point to each training curve."""
        values = {f"{name}/train": value for name, value in (output.metrics or {}).items()}
        self.curves.add(trainer.state.step, {"loss/train": float(output.loss), **values})  # type: ignore[arg-type]

    def on_eval_end(self, trainer: Trainer, record: dict[str, float]) -> None:
        """Raises ConfigError if the evaluation lacks a metric that a plateau schedule watches."""
        for monitor in self.monitors:
            if monitor not in record:
                effect = f"ReduceLROnPlateau, which watches '{monitor}', would never lower the learning rate"
                raise not_measured("params['learning_rate_schedule']", monitor, record, effect)

    def on_epoch_end(self, trainer: Trainer, record: dict[str, float]) -> None:
        """Adds the epoch's points to the curves, and writes a file if one is due."""
        state, epoch = trainer.state, int(record["epoch"])
        self.curves.add(epoch, {"avg_loss/train": record["train_loss"]})
        measured = {f"{name[5:]}/test": value for name, value in record.items() if name.startswith("test_")}
        if measured:
            self.curves.add(state.step, measured)
        if epoch % self.save_freq == 0 or state.epoch == trainer.max_epochs or trainer.should_stop:
            self._save(state, epoch)

    def _save(self, state: TrainState, epoch: int) -> None:
        content, path = checkpoint_content(state), self.logdir / f"model_epoch_{epoch}.pt"
        schedules = zip(self.names, content["schedules"], strict=True)
        try:
            save_checksummed(
                path,
                {
                    "format": FORMAT,
                    "epoch": epoch,
                    "step": state.step,
                    "model_state_dict": content["model"],
                    "optimizer_state_dict": content["optimizer"],
                    **{f"{name}state_dict": saved for name, saved in schedules},
                },
            )
        except OSError as error:
            raise RunFailedError(
                f"'{path}' could not be written: {first_line(error)}. Free disk space; the same call to train then "
                f"resumes from the last checkpoint."
            ) from error


class ConsoleLines(Progress):
    """Prints one line per epoch, and the loss and metrics of each evaluation; on a terminal also a progress bar."""

    def on_epoch_end(self, trainer: Trainer, record: dict[str, float]) -> None:
        """Prints the lines, with eight decimals. Epochs and evaluations are counted from 0."""
        write = self.console.print
        write(f"Epoch {record['epoch']:.0f} done. Average Epoch Loss {record['train_loss']:.8f}")
        if "test_loss" not in record:
            return
        number = sum("test_loss" in row for row in trainer.state.history) - 1
        write(f"Evaluation {number} done. Average Loss {record['test_loss']:.8f}")
        measured = {name[5:]: value for name, value in record.items() if name.startswith("test_")}
        del measured["loss"]
        if measured:
            write(_RULE)
            write(" ".join(f"{name} {value:.8f}" for name, value in measured.items()))
            write(_RULE)


def load_checkpoint(path: str | Path, model: nn.Module) -> dict[str, Any]:
    """Loads the weights of a `model_epoch_<e>.pt` into `model`, and returns the content of the file, on the CPU.

    Files of the original trainer can be read too. No code in the file is run. Raises ArtifactError for a file that is
    missing or damaged, that would run code, or that belongs to another network."""
    file = expand_user(path)
    content = load_checksummed(file, numpy_globals())
    if not isinstance(content, Mapping) or "model_state_dict" not in content:
        keys = f" It holds: {join_names(map(str, content))}." if isinstance(content, Mapping) else ""
        raise ArtifactError(f"'{file}' is not a model_epoch_<e>.pt; it has no 'model_state_dict'.{keys}")
    try:
        model.load_state_dict(content["model_state_dict"])
    except (RuntimeError, TypeError, AttributeError) as error:
        raise ArtifactError(f"'{file}' belongs to another network: {first_line(error)}") from error
    return dict(content)
