"""The detector of a model pack of InsightFace, run by its package; nothing is downloaded.

Shapes: N faces, H height, W width.
"""

from pathlib import Path

import numpy as np

from facelt.alignment.faces import Face
from facelt.errors import UserError
from facelt.whole_files import sha256_of_input

SOURCE = "https://github.com/deepinsight/insightface/releases/tag/model-zoo"
NAMES = ("det_*.onnx", "scrfd_*.onnx")
SIZES = [(128, 128), (640, 640)]
"""At which photographs are looked at, width and height: the package's own choice."""
THINNEST = SIZES[0][0]
"""Of a photograph so many times longer than wide nothing would be left at the smaller size, at which the package fails;
at the larger one its faces have five pixels."""


class InsightFaceDetector:
    """The detector below `root`: an .onnx file, a pack's folder, or a folder with models/PACK as the package keeps it.

    Raises UserError where there is none, more than one, or a file that is no detector with landmarks.
    """

    def __init__(self, root: Path, min_score: float = 0.5) -> None:
        path = find_detector(root)
        from insightface.model_zoo import get_model

        self.name = f"insightface:{path.name} sha256:{sha256_of_input(path)[:12]}"
        self.min_score = min_score
        try:
            self._model = get_model(str(path), download=False)
        except Exception as error:  # onnxruntime's and protobuf's own, which share no base
            raise UserError(f"{path}: cannot be loaded ({str(error).splitlines()[0]}); get it from {SOURCE}") from None
        if getattr(self._model, "taskname", None) != "detection" or not self._model.use_kps:
            raise UserError(f"{path}: is no detector with five landmarks; get a model pack from {SOURCE}")
        self._model.prepare(0, input_size=SIZES, det_thresh=min_score)

    def detect(self, image_HW3: np.ndarray) -> list[Face]:
        """The faces in an RGB photograph."""
        height, width = image_HW3.shape[:2]
        if max(height, width) >= THINNEST * min(height, width):
            return []
        box_N5, landmark_N52 = self._model.detect(np.ascontiguousarray(image_HW3[:, :, ::-1]))
        pairs = zip(box_N5.astype(np.float64), landmark_N52.astype(np.float64), strict=True)
        return [Face(box_5[:4], landmark_52, float(box_5[4])) for box_5, landmark_52 in pairs]


def find_detector(root: Path) -> Path:
    """The one detector below `root`. Raises UserError, which says where packs come from."""
    if root.is_file():
        return root
    folders = [root, *sorted(root.glob("models/*")), *sorted(root.glob("*"))]
    found = sorted({path for folder in folders for name in NAMES for path in folder.glob(name) if path.is_file()})
    if not found:
        raise UserError(
            f"{root}: holds no detector of InsightFace ({' or '.join(NAMES)}); get a model pack such as buffalo_l.zip "
            f"from {SOURCE}, mind its terms, and unpack it to {root / 'models' / 'buffalo_l'}"
        )
    if len(found) > 1:
        raise UserError(f"{root}: holds several detectors; give one: {', '.join(str(path) for path in found)}")
    return found[0]
