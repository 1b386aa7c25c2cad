"""Imports the labels of annotation tools as a CSV manifest of labelled moments.

    python tools/import_labels.py --video_dir=/data/videos --output=labels.csv cvat.xml 'elan/*.eaf'

LABELFILE is a file, or a pattern in quotes, of CVAT, Label Studio, VIA 3, BORIS, ELAN, Kinetics or
ActivityNet; vidpipe/labels/README.md describes how to export it. convert_videos reads the manifest
(--train_manifest).

Labels that cannot be used are listed by reason; --unused=FILE lists all of them. The exit code is 1 and no
manifest is written if none can be used, or if a labelled video is missing: half a manifest is easily taken
for the whole one. --allow_missing writes it without those videos.
"""

import logging
import sys
from pathlib import Path

from vidpipe import command_line
from vidpipe.config import ImportConfig

_log = logging.getLogger(__name__)
_COMMAND = command_line.Command(__doc__, arguments="LABELFILE...")
_read_config = _COMMAND.settings(ImportConfig)


def main(arguments: list[str]) -> int:
    """Label files -> manifest and summary; 1 if it was not written."""
    config = _read_config()
    if not arguments:
        _COMMAND.usage_error("name at least one label file")
    command_line.load_tensorflow()
    from vidpipe.labels import import_labels, import_summary, label_manifest
    from vidpipe.labels.label_file import Reason

    output = Path(config.output)
    label_manifest.check_replaceable(output, label_manifest.MANIFEST_COLUMNS)
    if config.unused is not None:
        label_manifest.check_replaceable(Path(config.unused), label_manifest.UNUSED_COLUMNS)
    labels = import_labels.import_labels(config, arguments)
    if config.unused is not None:
        label_manifest.write_unused(Path(config.unused), labels.unused)
    for line in import_summary.summary(labels):
        print(line)
    if not labels.moments:
        _log.error("%s is not written: no label can be used.", output)
        return 1
    unfound = {each.video for each in labels.unused if each.reason in (Reason.MISSING, Reason.AMBIGUOUS)}
    if unfound and not config.allow_missing:
        _log.error(
            "%s is not written: %d labelled videos were not found in %s. Correct --video_dir or the names, "
            "or give --allow_missing to import the other videos.",
            output, len(unfound), config.video_dir,
        )  # fmt: skip
        return 1
    label_manifest.write_manifest(output, labels.moments)
    print(f"{output}: written.")
    return 0


def run(argv: list[str]) -> int:
    """Runs the command; returns its exit code."""
    return _COMMAND.run(main, argv)


if __name__ == "__main__":
    command_line.leave(run(sys.argv))
