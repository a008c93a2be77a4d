"""The config keys of the arguments that lower packages know by a neutral name, see `core.errors`."""

_DATA = (
    *("root", "source", "val", "test", "batch_size", "eval_batch_size", "classes", "on_bad", "store", "csv", "images"),
    *("image_column", "label_column", "split_column", "group_column", "target", "dataset", "download", "cache"),
    *("cache_dir", "augment", "preprocess"),
)
_PREPROCESS = ("size", "channels", "mean", "std", "resize", "crop_pct")
_MODULE = (
    *("network", "pretrained", "weights", "weights_by", "optimizer", "layer_decay", "head_lr", "param_groups"),
    *("decay_1d", "freeze", "freeze_epochs", "loss", "ema", "metrics", "monitor", "class_weights"),
)
NAMES: dict[str, str | None] = {
    **{name: f"data.{name}" for name in _DATA},
    **{name: f"data.preprocess.{name}" for name in _PREPROCESS},
    **{name: f"module.{name}" for name in _MODULE},
    **{name: f"trainer.{name}" for name in ("max_epochs", "device", "divergence_threshold")},
    "transforms": "data.augment.transforms",
    "lr": "module.optimizer.lr",
    "stopping_monitor": "trainer.early_stopping.monitor",
    "directory": "run.dir",
    "run_name": "run.name",
    "requeue": "run.requeue",
}
"""Neutral argument name -> config key."""
