"""Options of the commands that run several steps: main and protocol."""

from dataclasses import dataclass, field
from typing import Any, Literal

from ocmlflow.pipeline.option_fields import (
    MODEL_NAME,
    SEED_MAX,
    WORK,
    OptionError,
    Options,
    about,
    from_text,
    option,
    option_fields,
)
from ocmlflow.pipeline.option_values import (
    absolute_href,
    absolute_hrefs,
    assignments,
    model_name,
    several,
    share_or_names,
)
from ocmlflow.pipeline.train_options import TrainOptions

_EPOCHS = "Number of epochs of training. Without it, the default of train."
_SEED = "Seed of every step."


@dataclass(frozen=True, kw_only=True)
class MainOptions(Options):
    """Run prepare, train, evaluate and predict; without a catalogue, on the built-in sample."""

    catalog: str | None = option(
        None,
        "Catalogue of labelled scenes to learn from, as in prepare; needs validation and images too. Without it, the "
        "built-in sample.",
        group="input",
        metavar="HREF",
        read=absolute_hrefs,
    )
    images: str | None = option(
        None,
        "What to predict, as in predict. Without it, the sample's test chips and held-out scenes.",
        group="input",
        metavar="HREF",
        read=absolute_hrefs,
    )
    validation: str | None = option(
        None,
        "Places or scenes to hold out, or their share, as in prepare. Without it, one place of the sample.",
        group="split",
        metavar="NAMES|SHARE",
        read=share_or_names,
    )
    epochs: int | None = option(None, _EPOCHS, group="training", low=1, metavar="N")
    seed: int = option(0, _SEED, group="training", low=0, high=SEED_MAX, metavar="N")
    output: str = option(
        "output",
        "Folder or s3:// address for the predictions.",
        group="output",
        metavar="FOLDER",
        read=absolute_href,
    )
    name: str = option(
        MODEL_NAME,
        "Registered model that gets a new version.",
        group="output",
        metavar="NAME",
        read=model_name,
    )
    work: str = option(
        WORK,
        "Folder for the sample and for unfinished work.",
        group="machine",
        metavar="FOLDER",
        read=absolute_href,
    )

    def check(self) -> None:
        """A catalogue of one's own says neither what to hold out nor what to predict."""
        if self.catalog and not (self.images and self.validation):
            raise OptionError("catalog", "needs validation and images beside it")


@dataclass(frozen=True, kw_only=True)
class ProtocolOptions(Options):
    """Train and score models by a named protocol. Steps that were done before are reused."""

    name: Literal["blocks", "leave-one-place-out", "first-benchmark"] = field(
        metadata=about(
            "blocks: 500 m blocks of ground, 70 % to train on, 10 % for validation, 20 % for the score; "
            "leave-one-place-out: one model per place, scored on the place that it never saw; first-benchmark: four "
            "scenes to train on and four to score, those of the first published benchmark.",
            group="input",
        )
    )
    catalog: str = field(
        metadata=about("Labelled scenes, as in prepare.", group="input", metavar="HREF", read=absolute_hrefs)
    )
    places: str | None = option(
        None,
        "For leave-one-place-out: the places to leave out in turn, separated by commas. Without it, every place.",
        group="input",
        metavar="NAMES",
        read=several,
    )
    epochs: int | None = option(None, _EPOCHS, group="training", low=1, metavar="N")
    seed: int = option(0, _SEED, group="training", low=0, high=SEED_MAX, metavar="N")
    train: str | None = option(
        None,
        "More options of train as NAME=VALUE, separated by commas, such as loss=dice,crop=512. Without it, the "
        "defaults of train.",
        group="training",
        metavar="NAME=VALUE",
        read=assignments,
    )
    work: str = option(
        WORK, "Folder for unfinished work, as in prepare.", group="machine", metavar="FOLDER", read=absolute_href
    )

    def training(self, name: str) -> dict[str, Any]:
        """Options of train for a model of that name, but for the chips."""
        more = dict(word.split("=", 1) for word in (self.train or "").split(",") if word)
        return {**more, "seed": self.seed, "name": name} | ({"epochs": self.epochs} if self.epochs else {})

    def check(self) -> None:
        """Places belong to one protocol; what train is told must suit it, now and not after the first step."""
        if self.places and self.name != "leave-one-place-out":
            raise OptionError("places", f"only for leave-one-place-out, got it for {self.name}")
        ours = {"chips", "fold", "name", "resume", *(field.name for field in option_fields(ProtocolOptions))}
        for word in (self.train or "").split(","):
            name, sign, _ = word.partition("=")
            if word and (not sign or name in ours):
                raise OptionError("train", f"must be NAME=VALUE of what the protocol does not set itself, got {name}")
        try:
            from_text(TrainOptions, self.training("x"))
        except OptionError as error:
            raise OptionError("train", str(error)) from None
