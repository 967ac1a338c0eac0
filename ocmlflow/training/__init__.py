"""Builds and trains Keras networks: batches, augmentation, losses and the training loop."""
