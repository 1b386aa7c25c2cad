"""Which epoch's model a run keeps, and when a run stops early."""

from collections.abc import Mapping, Sequence
from typing import Any

History = Sequence[Mapping[str, Any]]


def selected_epoch(history: History) -> Mapping[str, Any]:
    """Selects an epoch.

    The one-standard-error rule takes the latest epoch whose loss is within one standard error of the lowest;
    without a loss on clips that were not trained on, the last epoch. The rule is from Breiman et al.,
    "Classification and Regression Trees", 1984, where it takes the simplest of the trees that are as good as
    the best. On few clips the lowest loss is often that of an epoch long before the training is done; on many
    clips the rule stays close to it.

    Args:
      history: a row per epoch, at least one, with `epoch`, `val_loss` and `cv_loss` (None or left out where
        there is none), and their standard errors `val_loss_error` and `cv_loss_error`.

    Returns:
      The row of that epoch.

    >>> rows = [{"epoch": 1, "val_loss": 0.5, "val_loss_error": 0.2}, {"epoch": 2, "val_loss": 0.6}]
    >>> selected_epoch([*rows, {"epoch": 3, "val_loss": 0.8}])["epoch"]
    2
    """
    name = selecting_loss(history)
    if name is None:
        return history[-1]
    lowest = min(history, key=lambda row: row[name])
    highest = lowest[name] + lowest[f"{name}_error"]
    return [row for row in history if row[name] <= highest][-1]


def selecting_loss(history: History) -> str | None:
    """Returns the name of the loss that selects an epoch; None if there is none.

    >>> selecting_loss([{"epoch": 1, "val_loss": 0.5, "cv_loss": 0.4}])
    'cv_loss'
    """
    return next((name for name in ("cv_loss", "val_loss") if history[-1].get(name) is not None), None)


def run_metrics(history: History) -> dict[str, Any]:
    """Returns the content of a finished run's metrics.json.

    >>> run_metrics([{"epoch": epoch, "loss": 0.8 / epoch, "val_loss": None} for epoch in (1, 2)])
    {'selected_epoch': 2, 'epochs': 2, 'loss': 0.4, 'val_loss': None}
    """
    selected = dict(selected_epoch(history))
    return {"selected_epoch": selected.pop("epoch"), "epochs": history[-1]["epoch"]} | selected


def is_out_of_patience(history: History, patience: int | None) -> bool:
    """Whether the selecting loss has not improved for `patience` epochs; never where that is None.

    >>> rows = [{"epoch": epoch, "val_loss": loss} for epoch, loss in enumerate([3, 2, 2.5, 2], start=1)]
    >>> is_out_of_patience(rows[:3], patience=2), is_out_of_patience(rows, patience=2)
    (False, True)
    """
    if patience is None or not history:
        return False
    name = selecting_loss(history)
    if name is None:
        return False
    lowest = min(history, key=lambda row: row[name])
    return history[-1]["epoch"] - lowest["epoch"] >= patience
