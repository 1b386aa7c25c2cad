"""How events are found in long videos: the windows and the rule of a run, and the file of fitted ones.

`RUN_DIR/event_rule.json` is written by `tools/evaluate_events.py --fit`. Without it the windows are as long
as the clips that the model was trained on, and the rule is `events.default_rule`.
"""

import dataclasses
import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vidpipe.config import ConfigError
from vidpipe.errors import VidpipeError
from vidpipe.evaluation.events import EventRule, default_rule
from vidpipe.model.model_file import ModelMetadata
from vidpipe.storage import files
from vidpipe.training.run_folder import RunFolder

_UNKNOWN_CLIP_SEC = 2.0
# A window that is shorter or longer than nearly all training clips by more than this factor is far from them.
_FAR = 2
_log = logging.getLogger(__name__)


class RuleFileError(VidpipeError):
    """event_rule.json is corrupt."""


@dataclass(frozen=True, kw_only=True)
class Detection:
    """How events are found.

    Attributes:
      window_sec: length of a window, seconds.
      hop_sec: time between the starts of two windows, seconds.
      rule: how windows become events.
      model_sha256: of the model.keras for which the rule was fitted; empty if it was not fitted.
    """

    window_sec: float
    hop_sec: float
    rule: EventRule
    model_sha256: str = ""


def choose_detection(
    folder: RunFolder,
    metadata: ModelMetadata,
    *,
    window_sec: float | None = None,
    hop_sec: float | None = None,
    use_fitted: bool = True,
) -> Detection:
    """Returns the windows and the rule for a run; logs what does not fit.

    Args:
      folder: of the run; it may have no event_rule.json.
      metadata: of its model.
      window_sec: None for the fitted length, or that of the training clips.
      hop_sec: None for the fitted one, or half of a window.
      use_fitted: whether event_rule.json is read.

    Raises:
      RuleFileError: event_rule.json is corrupt.
    """
    fitted = read_detection(folder.event_rule) if use_fitted and folder.event_rule.exists() else None
    if fitted is not None and fitted.model_sha256 != files.sha256_of(folder.model):
        _log.warning("%s was fitted to another model than %s: fit it again.", folder.event_rule, folder.model)
    if window_sec is None:
        clip_sec = metadata.clip_sec[1] if metadata.clip_sec else _UNKNOWN_CLIP_SEC
        window_sec = fitted.window_sec if fitted else clip_sec
    if hop_sec is None:
        hop_sec = fitted.hop_sec if fitted and fitted.window_sec == window_sec else window_sec / 2
    _check_time_scale(window_sec, metadata)
    if fitted is None:
        rule = dataclasses.replace(default_rule(hop_sec), background=metadata.background)
        return Detection(window_sec=window_sec, hop_sec=hop_sec, rule=rule)
    if (window_sec, hop_sec) != (fitted.window_sec, fitted.hop_sec):
        _log.warning(
            "The event rule was fitted to windows of %g s every %g s, not of %g s every %g s: fit it again, "
            "or leave window_sec and hop_sec out.", fitted.window_sec, fitted.hop_sec, window_sec, hop_sec,
        )  # fmt: skip
    return dataclasses.replace(fitted, window_sec=window_sec, hop_sec=hop_sec)


def write_detection(path: Path, detection: Detection) -> None:
    """Writes event_rule.json."""
    files.write_text(path, json.dumps(dataclasses.asdict(detection), indent=2) + "\n")


def read_detection(path: Path) -> Detection:
    """Reads event_rule.json.

    Raises:
      RuleFileError: it is corrupt.
    """
    try:
        values: dict[str, Any] = json.loads(files.read_text(path))
        rule = EventRule(**values.pop("rule"))
        found = Detection(**values, rule=rule)
        if not (found.window_sec > 0 and found.hop_sec > 0):
            raise ValueError("window_sec and hop_sec must be above 0")
        return found
    except (ValueError, TypeError, KeyError, AttributeError, ConfigError) as error:
        raise RuleFileError(
            f"{path} is corrupt ({error}). Delete it, or fit the rule again with tools/evaluate_events.py "
            "--fit."
        ) from None


def _check_time_scale(window_sec: float, metadata: ModelMetadata) -> None:
    """Logs a warning if windows are much shorter or longer than the clips that the model has seen."""
    if metadata.clip_sec is None:
        return
    shortest, median, longest = metadata.clip_sec
    if not shortest / _FAR <= window_sec <= longest * _FAR:
        _log.warning(
            "Windows of %g s are far from the clips that the model was trained on (most have %g to %g s, "
            "the median is %g s): it has not seen such a time scale.", window_sec, shortest, longest, median,
        )  # fmt: skip
