"""Which values of a metric are better, by its name."""

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
"""A metric with one of these in its name is not the metric that the other words name."""
_LOWER, _HIGHER, _OTHER = (frozenset(words.split()) for words in (_LOWER_WORDS, _HIGHER_WORDS, _OTHER_WORDS))
_PAIRS = {("cross", "entropy"): "min", ("explained", "variance"): "max"}
_NEGATIVE = frozenset(("neg", "negative"))
_PIECES = re.compile(r"[^\W_]+")
_WORDS = re.compile(r"[A-Z]+\d*(?![a-z])|[A-Z]?[a-z]+\d*")


def metric_mode(monitor: str, known: Mapping[str, str] = MappingProxyType({})) -> str | None:
    """ "min" for a metric that is better when lower, such as a loss or an error, "max" for one that is better when
    higher, and None where the name does not say. `monitor` is `<split>_<metric>` or the metric alone; `known` gives the
    direction of metrics by name, before their words are looked at.

    The last word with a known direction decides (`error_rate`, `top5_error`, `f1_loss`), of `fpr_at_95_tpr` the last
    before "at". A negative likelihood is better when lower; a negative loss or error may be that of a class, or
    scikit-learn's `neg_mean_squared_error`, so it is not known. A "score" with no other such word is better when
    higher, as scikit-learn names them."""
    head = monitor.partition("/")[0]  # what follows is the name of a class, or a place
    for name in (monitor, head, monitor.partition("_")[2], head.partition("_")[2]):
        if name in known:
            return known[name]
    words = [word for piece in _PIECES.findall(head.partition("@")[0]) for word in _words_of(piece)]
    words = words[: words.index("at")] if "at" in words[1:] else words
    if not _OTHER.isdisjoint(words):
        return None
    found, negative = None, False
    for before, word in zip(["", *words], words, strict=False):
        direction = "min" if word in _LOWER else "max" if word in _HIGHER else _PAIRS.get((before, word))
        if direction is not None and negative:
            if direction == "min":
                return None
            direction = "min" if word == "likelihood" else "max"
        found = direction or found
        negative |= word in _NEGATIVE
    return found or ("max" if "score" in words else None)


def _words_of(piece: str) -> list[str]:
    """The words of a part of a name: of its case, such as MulticlassAUROC, unless it is a known word; without a number
    at the end, such as that of top5."""
    whole = _known(piece.lower())
    return [whole] if whole in _LOWER or whole in _HIGHER else [_known(word.lower()) for word in _WORDS.findall(piece)]


def _known(word: str) -> str:
    return word if word in _HIGHER else word.rstrip("0123456789")
