"""How fast Raster Vision maps a scene with a U-Net of the same size, to hold against `benchmarks.predict speed`.

    pip install rastervision-core==0.31.1 rastervision-pytorch-learner==0.31.1 segmentation-models-pytorch==0.6.0
    python benchmarks/raster_vision.py SCENE.tif

In an environment of its own: Raster Vision asks for older libraries than this project. The weights are random, so
that what it finds is of no use; windows of 512 pixels overlap by half, as in its examples.
"""

import resource
import sys
import tempfile
import time

import segmentation_models_pytorch as smp
import torch
from rastervision.core.data import (
    ClassConfig,
    RasterioSource,
    Scene,
    SemanticSegmentationLabelStore,
    SemanticSegmentationSmoothLabels,
)
from rastervision.core.data.label_store import PolygonVectorOutputConfig
from rastervision.pytorch_learner import (
    SemanticSegmentationGeoDataConfig,
    SemanticSegmentationLearner,
    SemanticSegmentationLearnerConfig,
    SemanticSegmentationSlidingWindowGeoDataset,
    SolverConfig,
)


def main() -> None:
    classes = ClassConfig(names=["none", "building"], null_class="none")
    network = smp.Unet(
        "tu-tf_efficientnet_lite0", encoder_weights=None, decoder_channels=(128, 64, 32, 16, 16), classes=2
    )
    network = network.eval().to(memory_format=torch.channels_last)
    settings = SemanticSegmentationLearnerConfig(
        data=SemanticSegmentationGeoDataConfig(class_config=classes, num_workers=0), solver=SolverConfig(batch_sz=4)
    )
    with tempfile.TemporaryDirectory() as folder:
        learner = SemanticSegmentationLearner(settings, output_dir=folder, model=network, training=False)
        started, cpu = time.perf_counter(), time.process_time()
        source = RasterioSource(sys.argv[1], channel_order=[0, 1, 2])
        height, width = source.shape[:2]
        windows = SemanticSegmentationSlidingWindowGeoDataset(
            scene=Scene("one", raster_source=source), size=512, stride=256, normalize=True
        )
        found = learner.predict_dataset(windows, raw_out=True, numpy_out=True, progress_bar=False)
        scores = SemanticSegmentationSmoothLabels.from_predictions(
            windows.windows, found, extent=source.extent, num_classes=2
        )
        store = SemanticSegmentationLabelStore(
            uri=f"{folder}/out",
            crs_transformer=source.crs_transformer,
            class_config=classes,
            vector_outputs=[PolygonVectorOutputConfig(class_id=1)],
            smooth_output=True,
        )
        store.save(scores)
        seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
    area, peak = height * width / 1e6, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    print(f"{area / seconds:.2f} Mpx/s, {area / cpu:.2f} Mpx per CPU second, {peak} MB at the most")


if __name__ == "__main__":
    main()
