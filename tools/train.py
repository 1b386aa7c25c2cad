"""Trains the fused video classifier on a converted dataset.

    python tools/train.py --data_dir=/data/records --run_dir=/runs/1
    python tools/train.py --data_dir=/data/records --run_dir=/runs/2 --init_from=/runs/1 --recipe=fine_tune

The same command resumes an interrupted run. Without flags it trains the recipe `frozen`, which measured best.
--recipe sets other defaults, and every flag overrides them.
"""

import sys
from dataclasses import dataclass

from vidpipe import command_line, devices
from vidpipe.config import TrainConfig, check, setting
from vidpipe.training.recipes import RECIPES

_COMMAND = command_line.Command(__doc__)


@dataclass(frozen=True, kw_only=True)
class _RecipeChoice:
    recipe: str = setting(
        "frozen",
        help="Set of defaults: frozen (backbone frozen, the default), fine_tune (backbone from block 5), or "
        "notebook (the method of the Keras notebook that vidpipe replaces).",
        group="Training",
        choices=tuple(RECIPES),
    )

    def __post_init__(self) -> None:
        check(self)


_read_recipe = _COMMAND.settings(_RecipeChoice)
_read_config = _COMMAND.settings(TrainConfig)


def main(arguments: list[str]) -> None:
    """Flags -> TrainConfig -> train."""
    del arguments
    paths = _read_config()
    recipe = RECIPES[_read_recipe().recipe]
    config = _read_config(recipe.train_config(data_dir=paths.data_dir, run_dir=paths.run_dir))
    command_line.load_tensorflow()
    devices.prepare(takes_all_memory=True)
    from vidpipe.training import train

    result = train.train(config)
    selected = result.metrics
    epoch = f"epoch {selected['selected_epoch']} of {selected['epochs']}"
    accuracies = "".join(
        f"; {name} {selected[column]:.3f}{_baseline(selected[f'linear_{column}'])}"
        for name, column in (
            ("accuracy in cross-validation", "cv_accuracy"),
            ("on the validation split", "val_accuracy"),
        )
        if selected[column] is not None
    )
    print(f"{result.run_dir}/model.keras: {epoch}{accuracies}.")


def _baseline(accuracy: float | None) -> str:
    return "" if accuracy is None else f" (its linear part alone {accuracy:.3f})"


def run(argv: list[str]) -> int:
    """Runs the command; returns its exit code."""
    return _COMMAND.run(main, argv)


if __name__ == "__main__":
    command_line.leave(run(sys.argv))
