"""What a run writes to `logdir` and to the terminal: checkpoints by epoch, TensorBoard's curves, lines."""

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
    """Writes `model_epoch_<e>.pt` after epoch 0, every `save_freq` epochs from there, and after the last; and for
    TensorBoard, at each step, `loss/train` and the steps' metrics as `<metric>/train`; after each epoch
    `avg_loss/train`, over epochs; after each evaluation `loss/test` and so on, over steps. `names` are those of the
    schedules, `monitors` what plateaus watch: an evaluation that does not measure it is a ConfigError."""

    def __init__(
        self, logdir: Path, save_freq: int, names: Sequence[str], monitors: Sequence[str], curves: CurveRecorder
    ):
        self.logdir, self.save_freq, self.names = logdir, save_freq, tuple(names)
        self.monitors, self.curves = tuple(monitors), curves

    def on_fit_start(self, trainer: Trainer) -> None:
        """Clears away what a kill in the middle of a file left."""
        for left in stale_temporaries(self.logdir, "model_epoch_*.pt"):
            left.unlink()

    def on_step_end(self, trainer: Trainer, output: StepOutput) -> None:
        """A point of each curve."""
        values = {f"{name}/train": value for name, value in (output.metrics or {}).items()}
        self.curves.add(trainer.state.step, {"loss/train": float(output.loss), **values})  # type: ignore[arg-type]

    def on_eval_end(self, trainer: Trainer, record: dict[str, float]) -> None:
        """What a plateau watches must be there."""
        for monitor in self.monitors:
            if monitor not in record:
                effect = f"ReduceLROnPlateau, which watches '{monitor}', would never lower the rate"
                raise not_measured("params['learning_rate_schedule']", monitor, record, effect)

    def on_epoch_end(self, trainer: Trainer, record: dict[str, float]) -> None:
        """The file, if it is its turn, and the epoch's points."""
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
                f"'{path}' could not be written: {first_line(error)}. Make room; the same call of train then goes on "
                f"from the last checkpoint."
            ) from error


class ConsoleLines(Progress):
    """On a terminal the bar; everywhere one line an epoch and, of an evaluation, its loss and metrics."""

    def on_epoch_end(self, trainer: Trainer, record: dict[str, float]) -> None:
        """The lines, to eight decimals. Epochs and evaluations are counted from 0."""
        say = self.console.print
        say(f"Epoch {record['epoch']:.0f} done. Average Epoch Loss {record['train_loss']:.8f}")
        if "test_loss" not in record:
            return
        number = sum("test_loss" in row for row in trainer.state.history) - 1
        say(f"Evaluation {number} done. Average Loss {record['test_loss']:.8f}")
        measured = {name[5:]: value for name, value in record.items() if name.startswith("test_")}
        del measured["loss"]
        if measured:
            say(_RULE)
            say(" ".join(f"{name} {value:.8f}" for name, value in measured.items()))
            say(_RULE)


def load_checkpoint(path: str | Path, model: nn.Module) -> dict[str, Any]:
    """Fills the model from a `model_epoch_<e>.pt`, whether it was written here or by the trainer that this interface
    comes from, and gives all that is in it, on the CPU. No code in the file is run. Raises ArtifactError for a file
    that is missing or damaged, that runs code, or that belongs to another network."""
    file = expand_user(path)
    content = load_checksummed(file, numpy_globals())
    if not isinstance(content, Mapping) or "model_state_dict" not in content:
        held = f" It holds: {join_names(map(str, content))}." if isinstance(content, Mapping) else ""
        raise ArtifactError(f"'{file}' has no 'model_state_dict', so it is no model_epoch_<e>.pt.{held}")
    try:
        model.load_state_dict(content["model_state_dict"])
    except (RuntimeError, TypeError, AttributeError) as error:
        raise ArtifactError(f"'{file}' belongs to another network: {first_line(error)}") from error
    return dict(content)
