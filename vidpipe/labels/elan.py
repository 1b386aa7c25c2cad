"""Reads annotations of ELAN: EAF files. The value of an annotation is the class.

Source: EAF Annotation Format 3.0, https://www.mpi.nl/tools/elan/EAF_Annotation_Format_3.0_and_ELAN.pdf:

- Time slots are in milliseconds. The slots inside a subdivided annotation may have no time; ELAN then spreads
  the annotations of the tier evenly between the known times.
- A REF_ANNOTATION has the time of its parent; several of one parent share it evenly.
- TIME_ORIGIN of a video is the part of it before the time 0 of the annotations.
"""

import xml.etree.ElementTree as ET
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from vidpipe.labels.label_file import LabelFileError, LabelledMoment, Labels, Reason, class_name
from vidpipe.labels.label_text import check_choice, to_number
from vidpipe.labels.label_xml import attribute, place, read_xml
from vidpipe.labels.video_names import is_video

_Span = tuple[float, float]


def read(path: Path, tiers: Sequence[str] = ()) -> Labels:
    """Reads an EAF file.

    Args:
      path: the file.
      tiers: names of the tiers that contain the classes; empty if only one has annotations.

    Raises:
      LabelFileError: several tiers have annotations and none was chosen, no video is named, or the times are
        not in milliseconds.
    """
    root = read_xml(path)
    header = root.find("HEADER")
    if header is None or header.get("TIME_UNITS", "milliseconds") != "milliseconds":
        raise LabelFileError(f"{path}: its times are not in milliseconds. Save it again with ELAN.")
    labels = Labels()
    video, origin_ms = _read_media(path, root, labels)
    filled = [tier for tier in root.iter("TIER") if tier.find("ANNOTATION") is not None]
    check_choice(path, [tier.get("TIER_ID", "") for tier in filled], tiers, "tiers")
    spans = _read_spans(path, root)
    for tier in filled:
        annotator = tier.get("ANNOTATOR") or root.get("AUTHOR") or ""
        for annotation in tier.iterfind("ANNOTATION/*"):
            where, label = place(path, annotation), class_name(annotation.findtext("ANNOTATION_VALUE"))
            span = spans.get(annotation.get("ANNOTATION_ID", ""))
            if tiers and tier.get("TIER_ID") not in tiers:
                labels.leave_out(Reason.OTHER_TIER, where, video, label)
            elif not label:
                labels.leave_out(Reason.NO_CLASS, where, video)
            elif span is None:
                labels.leave_out(Reason.NO_TIMES, where, video, label)
            else:
                start, end = (round((each + origin_ms) / 1000, 6) for each in span)
                labels.moments.append(
                    LabelledMoment(
                        video=video, label=label, start=start, end=end, where=where, annotator=annotator
                    )
                )
    return labels


def _read_media(path: Path, root: ET.Element, labels: Labels) -> tuple[str, float]:
    """Returns the name of the first video and its TIME_ORIGIN in milliseconds; leaves the others out."""
    found = []
    for media in root.iterfind("HEADER/MEDIA_DESCRIPTOR"):
        name = media.get("RELATIVE_MEDIA_URL") or media.get("MEDIA_URL") or ""
        if media.get("MIME_TYPE", "").startswith("video") or is_video(name):
            where = place(path, media)
            found.append((name, to_number(media.get("TIME_ORIGIN", "0"), where, "TIME_ORIGIN"), where))
    if not found:
        raise LabelFileError(
            f"{path}: names no video (MEDIA_DESCRIPTOR). Link the video in ELAN and save the file."
        )
    for name, _, where in found[1:]:
        labels.leave_out(Reason.OTHER_VIDEO, where, name)
    return found[0][:2]


def _read_spans(path: Path, root: ET.Element) -> dict[str, _Span]:
    """Returns start and end of each annotation in milliseconds; without those whose times are not known."""
    slots: dict[str, float | None] = {}
    for slot in root.iterfind("TIME_ORDER/TIME_SLOT"):
        value = slot.get("TIME_VALUE")
        time = None if value is None else to_number(value, place(path, slot), "TIME_VALUE")
        slots[attribute(path, slot, "TIME_SLOT_ID")] = time
    spans: dict[str, _Span] = {}
    children: dict[tuple[str, str], list[str]] = defaultdict(list)
    for tier in root.iter("TIER"):
        _spread(path, tier, slots)
        for annotation in tier.iterfind("ANNOTATION/ALIGNABLE_ANNOTATION"):
            start, end = (slots.get(slot) for slot in _slots_of(path, annotation))
            if start is not None and end is not None:
                spans[attribute(path, annotation, "ANNOTATION_ID")] = (start, end)
        for annotation in tier.iterfind("ANNOTATION/REF_ANNOTATION"):
            parent = attribute(path, annotation, "ANNOTATION_REF")
            children[tier.get("TIER_ID", ""), parent].append(attribute(path, annotation, "ANNOTATION_ID"))
    # A parent may itself be a REF_ANNOTATION: repeat until no further one gets its times.
    while ready := [key for key in children if key[1] in spans]:
        for key in ready:
            siblings = children.pop(key)
            start, end = spans[key[1]]
            length = (end - start) / len(siblings)
            for index, name in enumerate(siblings):
                spans[name] = (start + index * length, start + (index + 1) * length)
    return spans


def _spread(path: Path, tier: ET.Element, slots: dict[str, float | None]) -> None:
    """Fills in the slots of a tier that have no time, evenly between those around them."""
    chain: list[str] = []
    for annotation in tier.iterfind("ANNOTATION/ALIGNABLE_ANNOTATION"):
        first, last = _slots_of(path, annotation)
        chain = [*chain, last] if chain and chain[-1] == first else [first, last]
        start, end = slots.get(chain[0]), slots.get(last)
        if start is not None and end is not None:
            for index, slot in enumerate(chain):
                slots[slot] = start + (end - start) * index / (len(chain) - 1)
            chain = [last]


def _slots_of(path: Path, annotation: ET.Element) -> tuple[str, str]:
    first, last = (attribute(path, annotation, name) for name in ("TIME_SLOT_REF1", "TIME_SLOT_REF2"))
    return first, last
