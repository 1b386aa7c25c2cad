"""The summary of an import: moments by class, and what could not be used by reason."""

from collections import Counter
from collections.abc import Iterator

from vidpipe.config import SPLITS
from vidpipe.data.moment import format_number
from vidpipe.labels.label_file import FRAMES, LabelledMoment, Labels

_NUM_EXAMPLES = 3


def summary(labels: Labels) -> Iterator[str]:
    """Yields the lines of the summary."""
    moments = labels.moments
    if moments:
        num_videos = len({moment.video for moment in moments})
        num_classes = len({moment.label for moment in moments})
        yield f"{len(moments)} moments of {num_classes} classes in {num_videos} videos"
        yield from _classes(moments)
        splits = Counter(moment.split or "none" for moment in moments)
        if set(splits) != {"none"}:
            yield "  splits: " + ", ".join(
                f"{name} {splits[name]}" for name in (*SPLITS, "none") if splits[name]
            )
    if labels.unused:
        yield f"Not used: {len(labels.unused)}"
        yield from _reasons(labels)


def _classes(moments: list[LabelledMoment]) -> Iterator[str]:
    """Yields a line for each class, with the number of its moments and their total length."""
    width = max(len(moment.label) for moment in moments)
    for name in sorted({moment.label for moment in moments}):
        found = [moment for moment in moments if moment.label == name]
        totals: dict[str, float] = {}
        for moment in found:
            if moment.start is not None and moment.end is not None:
                unit = "frames" if moment.unit == FRAMES else "s"
                totals[unit] = totals.get(unit, 0) + moment.end - moment.start
        lengths = [f"{format_number(round(total, 3))} {unit}" for unit, total in totals.items()]
        num_whole = sum(moment.start is None for moment in found)
        lengths += [f"{num_whole} whole videos"] if num_whole else []
        yield f"  {name:{width}}  {len(found):5} moments  {', '.join(lengths)}"


def _reasons(labels: Labels) -> Iterator[str]:
    """Yields a line for each reason and a few examples."""
    for reason, count in Counter(each.reason for each in labels.unused).most_common():
        yield f"  {count:5}  {reason.value}"
        examples = [each for each in labels.unused if each.reason == reason]
        for each in examples[:_NUM_EXAMPLES]:
            yield "         " + ", ".join(filter(None, (each.where, each.video, each.label)))
        if count > _NUM_EXAMPLES:
            yield "         ..."
