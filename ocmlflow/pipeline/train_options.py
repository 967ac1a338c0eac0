"""Options of train: the chips, the network, how it learns, and where it is registered."""

from dataclasses import dataclass
from typing import Literal

from ocmlflow.pipeline.option_fields import MODEL_NAME, SEED_MAX, OptionError, Options, changed, option
from ocmlflow.pipeline.option_values import assignments, href, model_name

NETWORK = ("architecture", "encoder", "weights")
"""Options that choose the network a training starts with, where no registered version does."""


@dataclass(frozen=True, kw_only=True)
class TrainOptions(Options):
    """Train a network on chips, log every epoch, and register the best one as @candidate."""

    chips: str | None = option(
        None,
        "Run id of a `prepare` run. Without it, the newest finished one of the experiment.",
        group="input",
        metavar="RUN",
        read=href,
    )
    fold: int | None = option(
        None,
        "For chips made with folds: the fold to hold out for validation, from 0. Without it, their own split.",
        group="input",
        low=0,
        metavar="N",
    )
    epochs: int = option(
        30, "Number of epochs; each draws as many crops as there are chips.", group="training", low=1, metavar="N"
    )
    init: str | None = option(
        None,
        "Registered version to train further, such as models:/NAME@ALIAS, instead of architecture, encoder and "
        "weights. Without it, a new network.",
        group="model",
        metavar="MODEL",
    )
    architecture: str = option(
        "fpn", "Decoder of the network: fpn (feature pyramid) or unet.", group="model", metavar="NAME"
    )
    encoder: str = option(
        "efficientnet-lite0",
        "Encoder of the network: efficientnet-lite0, -lite1 or -lite2 (the last two need the extra `encoders`); "
        "efficientnetv2-b0 to -b3 and -s, resnet50 or convnext-tiny (their ImageNet weights are downloaded).",
        group="model",
        metavar="NAME",
    )
    weights: Literal["imagenet", "none"] = option(
        "imagenet", "Weights that the encoder starts with; none means random ones.", group="model"
    )
    freeze: int = option(
        0, "Number of first epochs in which only the decoder learns.", group="training", low=0, metavar="N"
    )
    loss: str = option(
        "bce+dice",
        "Loss: bce, dice, focal or jaccard (Lovász), or a sum of them joined by +.",
        group="training",
        metavar="NAME",
    )
    catalog_weights: str | None = option(
        None,
        "How often crops come from some catalogues, where 1 is as often as from others: tier_2=0.2 is for those whose "
        "address contains tier_2; several are separated by commas. Without it, all count alike.",
        group="input",
        metavar="TEXT=WEIGHT",
        read=assignments,
    )
    batch_size: int = option(8, "Crops per step.", group="training", low=1, metavar="N")
    crop: int = option(
        256,
        "Side of a training crop in pixels, a multiple of 32.",
        group="training",
        low=32,
        multiple_of=32,
        metavar="PIXELS",
    )
    building_crops: float = option(
        0.5, "Share of the crops that are taken around a building.", group="training", low=0, high=1, metavar="SHARE"
    )
    augment: float = option(
        1.0,
        "Strength of augmentation (rotation, brightness, colour, noise). 0 turns it off.",
        group="training",
        low=0,
        high=3,
        metavar="STRENGTH",
    )
    zoom: float = option(
        1.18, "Largest factor by which crops are zoomed in or out.", group="training", low=1, high=2, metavar="FACTOR"
    )
    learning_rate: float = option(
        1e-3,
        "Highest learning rate, reached after the warm-up.",
        group="training",
        low=1e-8,
        high=1,
        metavar="RATE",
    )
    weight_decay: float = option(1e-2, "Weight decay of AdamW.", group="training", low=0, high=1, metavar="RATE")
    warmup: float = option(
        0.05,
        "Share of the steps in which the learning rate rises. About 0.3 gives a one-cycle schedule.",
        group="training",
        low=0,
        high=1,
        metavar="SHARE",
    )
    ema: float = option(
        0.05,
        "Share of the steps over which weights are averaged. 0 takes the last weights as they are.",
        group="training",
        low=0,
        high=1,
        metavar="SHARE",
    )
    precision: Literal["float32", "bfloat16", "float16"] = option(
        "float32", "Number format of the computation. Half floats need a GPU that is made for them.", group="machine"
    )
    devices: int = option(
        1, "Number of GPUs of this machine that share each batch.", group="machine", low=1, metavar="N"
    )
    patience: int | None = option(
        None,
        "Stop after this many epochs without a better validation IoU. Without it, all epochs run.",
        group="training",
        low=1,
        metavar="N",
    )
    seed: int = option(
        0, "Seed that draws weights, crops and augmentation.", group="training", low=0, high=SEED_MAX, metavar="N"
    )
    picture_epochs: int = option(
        5, "Log a picture of predictions every so many epochs.", group="output", low=1, metavar="N"
    )
    workers: int = option(2, "Threads that read chips.", group="machine", low=1, metavar="N")
    name: str = option(
        MODEL_NAME,
        "Registered model that gets a new version.",
        group="output",
        metavar="NAME",
        read=model_name,
    )
    resume: str | None = option(
        None,
        "Run id of an interrupted training to continue with its own options; give nothing else. Without it, a new "
        "training begins.",
        group="input",
        metavar="RUN",
    )

    def check(self) -> None:
        """Resume stands alone, init replaces the network, and freezing must leave something to learn from."""
        given = changed(self)
        if self.resume and (others := [name for name in given if name != "resume"]):
            raise OptionError(
                "resume", f"the run continues with the options that it was started with, leave out {', '.join(others)}"
            )
        if self.init and (others := [name for name in NETWORK if name in given]):
            raise OptionError("init", f"the network of that version is trained, leave out {', '.join(others)}")
        if self.freeze and self.weights == "none":
            raise OptionError(
                "freeze",
                f"an encoder of random weights has to learn; got {self.freeze}, 0 or weights=imagenet would do",
            )
        if self.freeze >= self.epochs:
            raise OptionError(
                "freeze",
                f"the encoder would learn in none of the {self.epochs} epochs; must be less, got {self.freeze}",
            )
