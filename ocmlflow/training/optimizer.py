"""The optimizer: AdamW with warm-up, cosine decay, averaged weights and an encoder frozen at first."""

from collections.abc import Iterable
from typing import Any

import keras
from keras import ops

from ocmlflow.training import networks
from ocmlflow.training.train_step import Recipe, replicas


class FreezingAdamW(keras.optimizers.AdamW):
    """AdamW (arXiv:1711.05101) that does not change the `frozen` variables in its first `frozen_steps` steps.

    It updates their moments all the same: moments that start later would make the first steps several times too long.
    """

    def __init__(self, *args: Any, frozen: Iterable[keras.Variable], frozen_steps: int, **settings: Any) -> None:
        super().__init__(*args, **settings)
        # By id, because Keras tracks every variable in an attribute as one of the optimizer's own.
        self.frozen_ids = {id(variable) for variable in frozen}
        self.frozen_steps = frozen_steps

    def build(self, variables: list[keras.Variable]) -> None:
        self.is_frozen = [id(variable) in self.frozen_ids for variable in variables]
        super().build(variables)

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        if self.frozen_ids and self.is_frozen[self._get_variable_index(variable)]:
            learning_rate = ops.where(self.iterations >= self.frozen_steps, learning_rate, 0.0)
            if len(variable.shape) > 1:  # Keras' own decay of these is switched off: it knows no freezing
                self.assign_sub(variable, variable * (self.weight_decay * learning_rate))
        super().update_step(gradient, variable, learning_rate)

    def finalize_variable_values(self, var_list: list[keras.Variable]) -> None:
        """Keep the weights as they are: `callbacks.SwapAveragedWeights` swaps in the averages when they are needed."""


def build(network: keras.Model, recipe: Recipe, steps: int) -> keras.optimizers.Optimizer:
    """The optimizer of a training of so many `steps`, as the recipe says."""
    warmup = max(1, round(recipe.warmup * steps))
    rate = keras.optimizers.schedules.CosineDecay(
        recipe.learning_rate / 50,
        decay_steps=max(1, steps - warmup),
        alpha=1 / 50,
        warmup_target=recipe.learning_rate,
        warmup_steps=warmup,
    )
    # The average spans a share of the steps: over a fixed number, a short training would keep its start in it.
    momentum = 1 - 1 / max(1.0, recipe.ema * steps)
    average: dict[str, Any] = {"use_ema": True, "ema_momentum": momentum} if recipe.ema else {}
    frozen_layers = [layer for layer in network.layers if recipe.freeze and networks.is_encoder_layer(layer)]
    frozen = [variable for layer in frozen_layers for variable in layer.trainable_variables]
    adam = FreezingAdamW(
        rate,
        weight_decay=recipe.weight_decay,
        global_clipnorm=1.0 / replicas(recipe),  # each device clips its own gradients
        frozen=frozen,
        frozen_steps=recipe.freeze * steps // recipe.epochs,
        **average,
    )
    # Decay of scales and offsets would only fight batch normalization. Frozen variables decay in update_step.
    scales = [variable for variable in network.trainable_variables if len(variable.shape) <= 1]
    adam.exclude_from_weight_decay(var_list=[*scales, *frozen])
    # float16 reaches from 6e-8 to 65,504: scaling the loss keeps gradients within.
    return keras.optimizers.LossScaleOptimizer(adam) if recipe.precision == "float16" else adam
