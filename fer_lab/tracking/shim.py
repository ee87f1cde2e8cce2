"""The pyfunc that makes a registered version readable for anybody: copied into each version, imports fer_lab when loaded.

    mlflow.pyfunc.load_model("models:/fer-synthetic-8@challenger").predict(faces)    # uint8 [N, 48, 48] → float32 [N, K]

`model_config={"runtime": "openvino-int8", "threads": 2}` chooses the runtime; by default openvino when the bundle has it,
else torch. fer_lab's own verbs never load this file from a version.
"""

import warnings

from mlflow.models import set_model
from mlflow.pyfunc import PythonModel

warnings.filterwarnings("ignore", ".*Add type hints to the `predict` method")  # MLflow has none for arrays of faces


class FacialExpressionModel(PythonModel):  # type: ignore[misc]
    """uint8 faces in, probabilities out, through the same Predictor as everywhere else."""

    def load_context(self, context):  # type: ignore[no-untyped-def]
        """Verify the bundle and open it in the runtime that was asked for."""
        from fer_lab.backends.bundle import open_trusted
        from fer_lab.backends.session import Predictor

        bundle, config = open_trusted(context.artifacts["bundle"]), context.model_config or {}
        runtime = config.get("runtime") or ("openvino" if "openvino" in bundle.runtimes else "torch")
        self.predictor = Predictor.open(bundle, runtime, threads=int(config.get("threads") or 1))

    def predict(self, context, model_input, params=None):  # type: ignore[no-untyped-def]
        """Faces [N, 48, 48] or [N, 1, 48, 48], uint8 or whole numbers in 0–255 (JSON knows no uint8) → [N, K]."""
        import numpy as np

        faces = np.asarray(model_input)
        if faces.dtype != np.uint8:
            if not np.array_equal(faces, faces.astype(np.uint8)):
                raise ValueError(f"faces are whole numbers in 0–255, got {faces.dtype} {faces.min()}…{faces.max()}")
            faces = faces.astype(np.uint8)
        return self.predictor.predict(faces)


set_model(FacialExpressionModel())
