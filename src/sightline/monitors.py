"""Which values of a metric are better, by its name."""

from __future__ import annotations

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
    "jaccard dice kappa mcc matthews top hit hits likelihood correlation pearson spearman kendall concordance ssim "
    "psnr bleu skill improvement gain"
)
_OTHER_WORDS = "gap drop diff difference delta ratio std stdev var count time seconds"
"""A metric with one of these in its name is not the metric that the other words name."""
_LOWER, _HIGHER, _OTHER = (frozenset(words.split()) for words in (_LOWER_WORDS, _HIGHER_WORDS, _OTHER_WORDS))
_PAIRS = {("cross", "entropy"): "min", ("explained", "variance"): "max"}
_NEGATED = frozenset(("neg", "negative"))
_WORDS = re.compile(r"[A-Z]+\d*(?![a-z])|[A-Z]?[a-z]+\d*")
_NUMBERED = re.compile(r"^(top|acc|hit|hits|map|ap)\d+$")


def better_when(monitor: str, known: Mapping[str, str] = MappingProxyType({})) -> str | None:
    """ "min" for a metric that is better when lower, such as a loss or an error, "max" for one that is better when
    higher, and None where the name does not say. `monitor` is `<split>_<metric>` or the metric alone; `known` gives the
    direction of metrics by name, before their words are looked at.

    The last word with a known direction decides (`error_rate`, `top5_error`, `f1_loss`); "neg" or "negative" before it
    turns it round (`negative_log_likelihood`, scikit-learn's `neg_mean_squared_error`). A "score" with no other such
    word is better when higher, as scikit-learn names them."""
    head = monitor.partition("/")[0]  # what follows is the name of a class, or a place
    for name in (monitor, head, monitor.partition("_")[2], head.partition("_")[2]):
        if name in known:
            return known[name]
    words = [_NUMBERED.sub(r"\1", word.lower()) for word in _WORDS.findall(head)]
    if not _OTHER.isdisjoint(words):
        return None
    found, negated = None, False
    for before, word in zip(["", *words], words, strict=False):
        direction = "min" if word in _LOWER else "max" if word in _HIGHER else _PAIRS.get((before, word))
        if direction is not None:
            found = {"min": "max", "max": "min"}[direction] if negated else direction
        negated |= word in _NEGATED
    return found or ("max" if "score" in words else None)
