"""The seed's training pipeline in Keras, for train_speed.py; run by the Python of a throw-away environment with TensorFlow.

    uv venv keras && uv pip install --python keras/bin/python tensorflow-cpu scipy pillow

One argument: a folder with one folder of 48 × 48 PNGs per class. EfficientNetV2-B0 with one input channel at 96 px, batches of
256 drawn by ImageDataGenerator with the seed's augmentation, RMSprop at 0.01, class weights (ANCHORS: the seed's recipe).
Each line on the standard input is a number of steps to train; answers the seconds they took, as JSON.
"""

from __future__ import annotations

import json
import os
import sys
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

BATCH = 256  # faces
SIZE = 96  # px
WEIGHTS = (1, 5, 4, 2, 1, 0.75, 1, 1)  # anger … surprise, alphabetical


def main() -> None:
    """Build the network, train one step to trace it, then answer."""
    import keras
    import tensorflow as tf

    generator = tf.keras.preprocessing.image.ImageDataGenerator(
        rotation_range=20, width_shift_range=0.08, height_shift_range=0.08, zoom_range=0.05, shear_range=0.05,
        horizontal_flip=True, fill_mode="reflect",
    )  # fmt: skip
    faces = generator.flow_from_directory(
        sys.argv[1], target_size=(SIZE, SIZE), color_mode="grayscale", interpolation="bilinear", batch_size=BATCH, seed=0
    )
    model = keras.applications.EfficientNetV2B0(weights=None, input_shape=(SIZE, SIZE, 1), classes=len(WEIGHTS))
    metrics = ["accuracy", keras.metrics.Precision(), keras.metrics.Recall()]
    model.compile(keras.optimizers.RMSprop(0.01), "categorical_crossentropy", metrics=metrics)

    def train(steps: int) -> float:
        start = time.perf_counter()
        model.fit(faces, steps_per_epoch=steps, epochs=1, class_weight=dict(enumerate(WEIGHTS)), verbose=0)
        return time.perf_counter() - start

    train(1)
    print(json.dumps({"tensorflow": tf.__version__, "keras": keras.__version__, "batch": BATCH}), flush=True)
    for line in sys.stdin:
        print(json.dumps({"seconds": train(int(line))}), flush=True)


if __name__ == "__main__":
    main()
