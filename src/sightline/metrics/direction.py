"""Whether higher or lower values of a metric are better, inferred from its name."""

import re
from collections.abc import Mapping
from types import MappingProxyType

_LOWER_WORDS = (
    "loss error errors err mse rmse mae mape smape wmape msle rmsle medae mde logloss crossentropy nll perplexity ppl "
    "brier ece mce ace hamming deviance divergence kl kld wer cer eer fpr fnr misclassification regret hinge huber "
    "pinball hausdorff"
)
_HIGHER_WORDS = (
    "accuracy acc precision recall f1 fbeta f2 specificity sensitivity tpr tnr auc auroc auprc roc ap map r2 iou miou "
    "jaccard dice kappa mcc matthews rocauc top hit hits likelihood correlation pearson spearman kendall concordance "
    "ssim psnr bleu skill improvement gain"
)
_OTHER_WORDS = "gap drop diff difference delta ratio std stdev var count time seconds minus inverse"
"""Words that make a name a different quantity: `accuracy_gap` is not an accuracy."""
_LOWER, _HIGHER, _OTHER = (frozenset(text.split()) for text in (_LOWER_WORDS, _HIGHER_WORDS, _OTHER_WORDS))
_PAIRS = {("cross", "entropy"): "min", ("explained", "variance"): "max"}
_NEGATIVE = frozenset(("neg", "negative"))
_PARTS = re.compile(r"[^\W_]+")
_CAMEL_CASE = re.compile(r"[A-Z]+\d*(?![a-z])|[A-Z]?[a-z]+\d*")


def metric_mode(monitor: str, known: Mapping[str, str] = MappingProxyType({})) -> str | None:
    """Returns "min" if lower values of a metric are better, "max" if higher ones are, None if its name does not say.

    `monitor` is `<split>_<metric>` or only the metric. `known` maps names of metrics to "min" or "max" and takes
    precedence. The last word with a known direction decides (`error_rate`, `top5_error`, `f1_loss`); in `fpr_at_95_tpr`
    it is the last one before "at". A negative likelihood is better when lower. A negative loss or error returns None:
    it may be the loss of a negative class, or scikit-learn's `neg_mean_squared_error`. A "score" without any of these
    words is better when higher, as in scikit-learn."""
    head = monitor.partition("/")[0]  # the rest is the name or the index of a class
    for name in (monitor, head, monitor.partition("_")[2], head.partition("_")[2]):
        if name in known:
            return known[name]
    tokens = [token for part in _PARTS.findall(head.partition("@")[0]) for token in _split(part)]
    tokens = tokens[: tokens.index("at")] if "at" in tokens[1:] else tokens
    if not _OTHER.isdisjoint(tokens):
        return None
    mode, negative = None, False
    for before, word in zip(["", *tokens], tokens, strict=False):
        direction = "min" if word in _LOWER else "max" if word in _HIGHER else _PAIRS.get((before, word))
        if direction is not None and negative:
            if direction == "min":
                return None
            direction = "min" if word == "likelihood" else "max"
        mode = direction or mode
        negative |= word in _NEGATIVE
    return mode or ("max" if "score" in tokens else None)


def _split(part: str) -> list[str]:
    """The lower-case words of a part of a name, without numbers at the end (`top5`).

    A part that is not a known word is split at its capitals (`MulticlassAUROC`)."""
    word = _without_number(part.lower())
    if word in _LOWER or word in _HIGHER:
        return [word]
    return [_without_number(word.lower()) for word in _CAMEL_CASE.findall(part)]


def _without_number(word: str) -> str:
    return word if word in _HIGHER else word.rstrip("0123456789")
