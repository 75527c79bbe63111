"""How good an answer is: token F1 of short answers, ROUGE-L of summaries."""

from codec_bench.questions import normalised, scores_of

from .cases import NEWS

__all__ = ["score"]


def score(dataset: str, answer: str, right: tuple[str, ...]) -> float:
    """From 0 to 1, the best over the right answers."""
    if dataset != NEWS:
        return scores_of(answer, right).f1
    return max(_rouge_l(normalised(answer).split(), normalised(item).split()) for item in right)


def _rouge_l(said: list[str], right: list[str]) -> float:
    """The F-measure of the longest common subsequence of words."""
    lengths = [0] * (len(right) + 1)
    for word in said:
        before = lengths[:]
        for place, other in enumerate(right):
            lengths[place + 1] = before[place] + 1 if word == other else max(before[place + 1], lengths[place])
    return 2 * lengths[-1] / (len(said) + len(right)) if lengths[-1] else 0.0
