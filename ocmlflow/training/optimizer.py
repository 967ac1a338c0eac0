"""Model and batches, to a fitted model and its history."""

from collections.abc import Iterable
from typing import Any

import keras
from keras import ops

from ocmlflow.training import networks
from ocmlflow.training.train_step import Recipe, replicas


class FreezingAdamW(keras.optimizers.AdamW):
    """AdamW (arXiv:1711.05101) that leaves the `frozen` variables as they are in its first steps.

    Their moments are made all the same: begun later, they would make the first steps after that several times too long.
    """

    def __init__(self, *args: Any, frozen: Iterable[keras.Variable], frozen_steps: int, **settings: Any) -> None:
        super().__init__(*args, **settings)
        # Keras takes variables that an optimizer keeps for its own.
        self.frozen, self.frozen_steps = {id(variable) for variable in frozen}, frozen_steps

    def build(self, variables: list[keras.Variable]) -> None:
        self.late = [id(variable) in self.frozen for variable in variables]
        super().build(variables)

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        if self.frozen and self.late[self._get_variable_index(variable)]:
            learning_rate = ops.where(self.iterations >= self.frozen_steps, learning_rate, 0.0)
            if len(variable.shape) > 1:
                self.assign_sub(variable, variable * (self.weight_decay * learning_rate))
        super().update_step(gradient, variable, learning_rate)

    def finalize_variable_values(self, var_list: list[keras.Variable]) -> None:
        """Nothing: `callbacks.Averaged` puts averages in place, and the weights themselves go on to another `fit`."""


def build(network: keras.Model, recipe: Recipe, steps: int) -> keras.optimizers.Optimizer:
    """AdamW with warm-up and cosine decay over that many steps, as the recipe says."""
    warmup = max(1, round(recipe.warmup * steps))
    rate = keras.optimizers.schedules.CosineDecay(
        recipe.learning_rate / 50,
        decay_steps=max(1, steps - warmup),
        alpha=1 / 50,
        warmup_target=recipe.learning_rate,
        warmup_steps=warmup,
    )
    # A share of the steps, not a fixed number: a short training would never leave its start behind.
    momentum = 1 - 1 / max(1.0, recipe.ema * steps)
    average: dict[str, Any] = {"use_ema": True, "ema_momentum": momentum} if recipe.ema else {}
    encoder = [layer for layer in network.layers if networks.is_encoder_layer(layer)] if recipe.freeze else []
    frozen = [variable for layer in encoder for variable in layer.trainable_variables]
    adam = FreezingAdamW(
        rate,
        weight_decay=recipe.weight_decay,
        global_clipnorm=1.0 / replicas(recipe),  # each device clips its own
        frozen=frozen,
        frozen_steps=recipe.freeze * steps // recipe.epochs,
        **average,
    )
    # Scales and offsets are not decayed: it would only fight the batch norm. What is frozen is as it learns.
    scales = [variable for variable in network.trainable_variables if len(variable.shape) <= 1]
    adam.exclude_from_weight_decay(var_list=[*scales, *frozen])
    # Half floats end at 65,504 and 6e-8: the loss is scaled so that gradients fit, as far as they let it.
    return keras.optimizers.LossScaleOptimizer(adam) if recipe.precision == "float16" else adam
