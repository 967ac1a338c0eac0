"""Options of every command, as records: the one place of defaults, ranges, help and of what excludes what.

`TrainOptions(epochs=3)` in Python, `--epochs 3` on the command line and `from_text(TrainOptions, {"epochs": "3"})` from
the parameters of a run make the same record, or fail with the same words. `make` names unknown and missing options too.
"""

from ocmlflow.pipeline.model_options import CompareOptions, EvaluateOptions, PredictOptions
from ocmlflow.pipeline.option_fields import (
    MODEL_NAME,
    OptionError,
    OptionField,
    Options,
    changed,
    from_text,
    make,
    option_fields,
    parameters,
    words,
)
from ocmlflow.pipeline.prepare_options import PrepareOptions
from ocmlflow.pipeline.tool_options import STEPS, DoctorOptions, LaunchOptions, SendOptions, ServerOptions
from ocmlflow.pipeline.train_options import NETWORK, TrainOptions
from ocmlflow.pipeline.workflow_options import MainOptions, ProtocolOptions

__all__ = [
    "MODEL_NAME",
    "NETWORK",
    "STEPS",
    "CompareOptions",
    "DoctorOptions",
    "EvaluateOptions",
    "LaunchOptions",
    "MainOptions",
    "OptionError",
    "OptionField",
    "Options",
    "PredictOptions",
    "PrepareOptions",
    "ProtocolOptions",
    "SendOptions",
    "ServerOptions",
    "TrainOptions",
    "changed",
    "from_text",
    "make",
    "option_fields",
    "parameters",
    "words",
]
