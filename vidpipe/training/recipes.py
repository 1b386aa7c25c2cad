"""Recipes: settings that were measured together, usable from the command line and from Python.

config = RECIPES["fine_tune"].train_config(data_dir="records", run_dir="run")
config = dataclasses.replace(config, epochs=5, init_from="frozen_run")
"""

from dataclasses import dataclass, field

from vidpipe.config import ClipConfig, ModelConfig, OptimizerConfig, TrainConfig


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A set of settings; a recipe that does not name one has the default of its config.

    Attributes:
      clip: how videos become clips, for the conversion.
      model, optimizer, epochs, batch_size, label_smoothing: of the training run.
    """

    clip: ClipConfig = field(default_factory=ClipConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    epochs: int = TrainConfig.epochs
    batch_size: int | None = TrainConfig.batch_size
    label_smoothing: float = TrainConfig.label_smoothing

    def train_config(self, *, data_dir: str, run_dir: str) -> TrainConfig:
        """Returns the settings of a run by this recipe."""
        return TrainConfig(
            data_dir=data_dir,
            run_dir=run_dir,
            model=self.model,
            optimizer=self.optimizer,
            epochs=self.epochs,
            batch_size=self.batch_size,
            label_smoothing=self.label_smoothing,
        )


RECIPES = {
    # The defaults themselves; tools/accuracy/RESULTS.md has their accuracy over five seeds.
    "frozen": Recipe(),
    # Best started from a frozen run (--init_from). Without warm-up and a small learning rate VGG16 collapses
    # to one class; see tools/accuracy/RESULTS.md.
    "fine_tune": Recipe(
        model=ModelConfig(fine_tune="block5"),
        optimizer=OptimizerConfig(
            schedule="cosine", warmup_epochs=1.0, weight_decay=0.01, clip_norm=1.0, ema=0.99
        ),
        epochs=20,
    ),
    # The Keras notebook that vidpipe replaces: its head, batch size and epochs, and the first 20 frames of
    # each video.
    "notebook": Recipe(
        clip=ClipConfig(sampling="head"),
        model=ModelConfig(head="notebook"),
        optimizer=OptimizerConfig(ema=0.0),
        epochs=10,
        batch_size=64,
        label_smoothing=0.0,
    ),
}
