"""YuNet, a small detector that OpenCV runs by itself.

Shapes: 4 a box (left, top, right, bottom), 52 five points (x, y), N faces, L findings of one face, H height, W width.

The detector of a model pack of InsightFace, run by its package; nothing is downloaded.

Shapes: N faces, H height, W width.

From photographs to aligned faces: detection, five landmarks, ArcFace's template, quality. No torch.
"""

from pathlib import Path

import cv2
import numpy as np

from facelt.alignment.align import Detector, Face
from facelt.errors import UserError
from recordio_tools.atomic_io import sha256_of

YUNET_URL = (
    "https://github.com/ShiqiYu/libfacedetection.train/tree/master/onnx (yunet_n_dynamic.onnx; for OpenCV 4, which "
    "wants a fixed shape, face_detection_yunet_2023mar.onnx from https://github.com/opencv/opencv_zoo)"
)
SIDES = (240, 480, 960, 1920)
"""Longer sides, in pixels, at which a photograph is looked at, but never magnified more than twice. YuNet finds faces
of about 10 to 400 pixels. One that takes 10 in 1920 has too few pixels in any photograph to know a person by."""
MOST_EXACT = (40, 400)
"""Widths of a face, in pixels, between which its landmarks are trusted first."""
SAME, WITHIN = 0.4, 0.8
"""Boxes that share more of their union are one face; one with more of it inside of a surer one is no face: an eye and
its brow, magnified, can look like one."""


class YuNet:
    """The detector in `path`, looking at each photograph in several sizes.

    A face that is found in several sizes has the mean of its landmarks, which lie nearer to those of other detectors
    than any single ones. Raises UserError where the file is missing or no YuNet.
    """

    def __init__(self, path: Path, min_score: float = 0.7) -> None:
        if not path.is_file():
            raise UserError(f"{path}: no such file; get YuNet's weights from {YUNET_URL} and give their path")
        self.name = f"yunet:{path.name} sha256:{sha256_of(path)[:12]}"
        self.min_score = min_score
        # OpenCV tells of its engine's choices, and of a file that is none, on stderr; the latter we say ourselves.
        cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
        try:
            self._net = cv2.FaceDetectorYN.create(str(path), "", (SIDES[0], SIDES[0]), min_score, 0.3, 5000)
            self.detect(np.zeros((120, 120, 3), np.uint8))
        except cv2.error:
            raise UserError(
                f"{path}: no YuNet that OpenCV {cv2.__version__} can run; get one from {YUNET_URL}"
            ) from None

    def detect(self, image_HW3: np.ndarray) -> list[Face]:
        """The faces in an RGB photograph."""
        image_HW3 = cv2.cvtColor(image_HW3, cv2.COLOR_RGB2BGR)
        longer = max(image_HW3.shape[:2])
        scales = [side / longer for side in SIDES if side <= 2 * longer]
        return merge([face for scale in scales or [2.0] for face in self._detect_at(image_HW3, scale)])

    def _detect_at(self, image_HW3: np.ndarray, scale: float) -> list[tuple[Face, float]]:
        """Faces in the photograph's own pixels, each with the width it had when it was found."""
        height, width = (max(round(side * scale), 1) for side in image_HW3.shape[:2])
        resampling = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
        self._net.setInputSize((width, height))
        found_N15 = self._net.detect(cv2.resize(image_HW3, (width, height), interpolation=resampling))[1]
        if found_N15 is None:
            return []
        per_pixel_2 = np.array([image_HW3.shape[1] / width, image_HW3.shape[0] / height])
        faces = []
        for row_15 in found_N15[np.isfinite(found_N15).all(1)].astype(np.float64):
            corner_22 = np.stack([row_15[:2], row_15[:2] + row_15[2:4]]) * per_pixel_2
            landmark_52 = row_15[4:14].reshape(5, 2) * per_pixel_2
            faces.append((Face(corner_22.ravel(), landmark_52, float(row_15[14])), float(row_15[2])))
        return faces


def merge(found: list[tuple[Face, float]]) -> list[Face]:
    """Each face once, from faces with the width each was found at: the best score, the mean of place and landmarks."""
    waiting, faces = sorted(found, key=lambda pair: -pair[0].score), []
    while waiting:
        best = waiting[0][0]
        trusted, rest = [], []
        for face, width in waiting:
            union, inside = overlap(face.box_4, best.box_4)
            if union <= SAME and inside <= WITHIN and face is not best:
                rest.append((face, width))
            elif union > SAME and MOST_EXACT[0] <= width <= MOST_EXACT[1]:
                trusted.append(face)
        waiting, trusted = rest, trusted or [best]
        box_4 = np.mean([face.box_4 for face in trusted], axis=0)
        faces.append(Face(box_4, np.mean([face.landmark_52 for face in trusted], axis=0), best.score))
    return faces


def overlap(box_4: np.ndarray, other_4: np.ndarray) -> tuple[float, float]:
    """The share of their union that both boxes cover, and the share of the first that lies in the other."""
    low_2, high_2 = np.maximum(box_4[:2], other_4[:2]), np.minimum(box_4[2:], other_4[2:])
    both = np.clip(high_2 - low_2, 0, None).prod()
    first, second = (box_4[2:] - box_4[:2]).prod(), (other_4[2:] - other_4[:2]).prod()
    return both / max(first + second - both, 1e-9), both / max(first, 1e-9)


INSIGHTFACE_URL = "https://github.com/deepinsight/insightface/releases/tag/model-zoo"
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

        self.name = f"insightface:{path.name} sha256:{sha256_of(path)[:12]}"
        self.min_score = min_score
        try:
            self._model = get_model(str(path), download=False)
        except Exception as error:  # onnxruntime's and protobuf's own, which share no base
            raise UserError(
                f"{path}: cannot be loaded ({str(error).splitlines()[0]}); get it from {INSIGHTFACE_URL}"
            ) from None
        if getattr(self._model, "taskname", None) != "detection" or not self._model.use_kps:
            raise UserError(f"{path}: is no detector with five landmarks; get a model pack from {INSIGHTFACE_URL}")
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
            f"from {INSIGHTFACE_URL}, mind its terms, and unpack it to {root / 'models' / 'buffalo_l'}"
        )
    if len(found) > 1:
        raise UserError(f"{root}: holds several detectors; give one: {', '.join(str(path) for path in found)}")
    return found[0]


DETECTORS = {"yunet": YuNet, "insightface": InsightFaceDetector}


def open_detector(text: str, min_score: float | None = None) -> Detector:
    """The detector that `KIND:PATH` names, with its own least score where `min_score` is None.

    Raises UserError where there is no such kind or file.
    """
    kind, _, path = text.partition(":")
    if kind not in DETECTORS or not path:
        raise UserError(f"--detector {text}: expected one of {', '.join(f'{name}:PATH' for name in DETECTORS)}")
    return DETECTORS[kind](Path(path).expanduser(), **({} if min_score is None else {"min_score": min_score}))
