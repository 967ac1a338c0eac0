"""Options of the commands around the steps: doctor, server, launch and send."""

from dataclasses import dataclass, field
from typing import Literal

from ocmlflow.pipeline.model_options import CompareOptions, EvaluateOptions, PredictOptions
from ocmlflow.pipeline.option_fields import WORK, OptionError, Options, about, from_text, option
from ocmlflow.pipeline.option_values import href, model_name, pairs, several
from ocmlflow.pipeline.prepare_options import PrepareOptions
from ocmlflow.pipeline.train_options import TrainOptions
from ocmlflow.pipeline.workflow_options import MainOptions, ProtocolOptions

STEPS: dict[str, type[Options]] = {
    "prepare": PrepareOptions,
    "train": TrainOptions,
    "evaluate": EvaluateOptions,
    "compare": CompareOptions,
    "protocol": ProtocolOptions,
    "predict": PredictOptions,
    "main": MainOptions,
}
"""Commands that have a run of their own, and their options."""
_FIRST_UP = "Settled at the first `up`."


@dataclass(frozen=True, kw_only=True)
class DoctorOptions(Options):
    """Check what the other commands depend on; say what is wrong and how to mend it."""

    s3: str | None = option(
        None,
        "s3:// folder to test by writing and reading. Without it, the artifact folder, where that is in S3.",
        group="machine",
        metavar="HREF",
        read=href,
    )
    work: str = option(
        WORK, "Folder for unfinished work, whose disk needs room.", group="machine", metavar="FOLDER", read=href
    )
    free_gb: float = option(
        5.0, "Gigabytes that should be free on each disk.", group="machine", low=0, metavar="GIGABYTES"
    )


@dataclass(frozen=True, kw_only=True)
class ServerOptions(Options):
    """Run an MLflow server with a database and an S3 server on this machine, without containers."""

    action: Literal["up", "down", "status", "backup", "restore", "clean", "upgrade"] = field(
        metadata=about(
            "What to do with the server: up, down, status, backup, restore, clean or upgrade.",
            group="input",
            positional=True,
        )
    )
    folder: str = option(".server", "Folder of data, settings and logs.", group="output", metavar="FOLDER", read=href)
    database: Literal["postgresql", "sqlite"] = option(
        "postgresql", f"Database of MLflow. {_FIRST_UP}", group="machine"
    )
    port: int = option(5000, f"Port of MLflow. {_FIRST_UP}", group="machine", low=1024, high=65535, metavar="PORT")
    s3_port: int = option(
        8333, f"Port of the S3 server. {_FIRST_UP}", group="machine", low=1024, high=55535, metavar="PORT"
    )
    database_port: int = option(
        5433, f"Port of PostgreSQL. {_FIRST_UP}", group="machine", low=1024, high=65535, metavar="PORT"
    )
    workers: int = option(2, f"Processes of MLflow. {_FIRST_UP}", group="machine", low=1, metavar="N")
    allowed_hosts: str | None = option(
        None,
        "Host names with ports, separated by commas, under which other machines reach MLflow. Without it, the ones "
        f"that MLflow allows itself. {_FIRST_UP}",
        group="machine",
        metavar="HOSTS",
        read=several,
    )
    backup: str = option(
        "backup", "Folder that `backup` writes and `restore` reads.", group="output", metavar="FOLDER", read=href
    )
    older_than: str = option(
        "30d", "`clean` removes runs that were deleted at least this long ago.", group="output", metavar="AGE"
    )


@dataclass(frozen=True, kw_only=True)
class LaunchOptions(Options):
    """Run a step on another machine: send a copy of this code, show its log, end as it ends."""

    step: Literal["prepare", "train", "evaluate", "compare", "protocol", "predict", "main"] = field(
        metadata=about("The step to run.", group="input")
    )
    backend: Literal["databricks", "kubernetes"] = field(metadata=about("Where to run it.", group="machine"))
    parameter: tuple[tuple[str, str], ...] = option(
        (),
        "An option of the step, such as -P epochs=30; as often as needed.",
        group="input",
        metavar="NAME=VALUE",
        read=pairs,
        short="-P",
        repeated=True,
    )
    config: str | None = option(
        None,
        "JSON file of the backend. Without it, the one in backends/.",
        group="machine",
        metavar="FILE",
        read=href,
    )
    experiment: str | None = option(
        None, "Name of the experiment. Without it, the current one of MLflow.", group="output", metavar="NAME"
    )
    pending_minutes: float = option(
        30.0, "Give up when nothing has started after so many minutes.", group="machine", low=0, metavar="MINUTES"
    )

    def check(self) -> None:
        """What the step would refuse ends it here, not on the other machine."""
        try:
            from_text(STEPS[self.step], dict(self.parameter))
        except OptionError as error:
            raise OptionError("parameter", str(error)) from None


@dataclass(frozen=True, kw_only=True)
class SendOptions(Options):
    """Send to MLFLOW_TRACKING_URI what runs of this user could not log while the server was away."""

    run: str | None = option(
        None, "Run id, to send only what that run left. Without it, everything left.", group="input", metavar="RUN"
    )
    name: str | None = option(
        None,
        "Registered model that the model of that run becomes a version of, where its own is refused. Without it, the "
        "name that the training was given.",
        group="output",
        metavar="NAME",
        read=model_name,
    )

    def check(self) -> None:
        """Only one model can be meant by a name."""
        if self.name and not self.run:
            raise OptionError("name", "names the model of one run, give run too")
