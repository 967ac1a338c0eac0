import keras
import numpy as np

from ocmlflow.training.callbacks import EpochReporter, SwapAveragedWeights


def test_averages_come_and_go_and_the_best_weights_stay():
    network = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, use_bias=False)])
    network.compile(keras.optimizers.SGD(1.0, use_ema=True, ema_momentum=0.5), "mse")
    network.train_on_batch(np.ones((1, 1)), np.ones((1, 1)))
    network.train_on_batch(np.zeros((1, 1)), np.ones((1, 1)))
    (weight,), average = network.trainable_variables, SwapAveragedWeights()
    average.set_model(network)
    weight.assign([[8.0]])
    network.optimizer._model_variables_moving_average[0].assign([[2.0]])
    reporter = EpochReporter(network, 1, lambda epoch, figures: None, None)
    for step, expected in (("on_test_begin", 2.0), ("on_test_end", 8.0)):
        getattr(average, step)()
        assert weight.numpy()[0, 0] == expected
    assert float(reporter.weights[0][0, 0]) == 8.0
    weight.assign([[3.0]])
    assert float(reporter.weights[0][0, 0]) == 8.0
