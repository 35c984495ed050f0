"""Face detectors with five landmarks: YuNet by OpenCV, and the detectors of InsightFace's model packs.

Shapes: 4 a box (left, top, right, bottom), 52 five landmarks (x, y), N faces, H height, W width.
"""

from pathlib import Path

import cv2
import numpy as np

from facelt.alignment.align import Detector, Face
from facelt.errors import UserError
from recordio_tools.atomic_io import sha256_of

YUNET_URL = (
    "https://github.com/ShiqiYu/libfacedetection.train/tree/master/onnx (yunet_n_dynamic.onnx; for OpenCV 4, which "
    "needs a fixed shape, face_detection_yunet_2023mar.onnx from https://github.com/opencv/opencv_zoo)"
)
_LONGER_SIDES = (240, 480, 960, 1920)
"""Longer sides, in pixels, to which a photograph is resized for detection, magnified at most twice. YuNet finds faces
of about 10 to 400 pixels; a face of 10 pixels in 1920 has too few pixels to recognise a person."""
_TRUSTED_WIDTHS = (40, 400)
"""Range of face widths, in pixels, in which landmarks are most accurate."""
_SAME_FACE_IOU, _NESTED_SHARE = 0.4, 0.8
"""Boxes with a larger intersection over union are one face. A box with a larger share inside a box of higher score is
no face: a magnified eye and brow can look like one."""


class YuNet:
    """YuNet detector that runs on each photograph at several sizes.

    A face found at several sizes has the mean of its landmarks, which agrees better with other detectors than the
    landmarks of any single size. Raises UserError if the file is missing or not a YuNet model.
    """

    def __init__(self, path: Path, min_score: float = 0.7) -> None:
        if not path.is_file():
            raise UserError(f"{path}: no such file; get the weights of YuNet from {YUNET_URL} and pass their path")
        self.name = f"yunet:{path.name} sha256:{sha256_of(path)[:12]}"
        self.min_score = min_score
        # OpenCV logs engine choices and invalid files to stderr; the latter are reported below.
        cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
        try:
            self._net = cv2.FaceDetectorYN.create(
                str(path), "", (_LONGER_SIDES[0], _LONGER_SIDES[0]), min_score, 0.3, 5000
            )
            self.detect(np.zeros((120, 120, 3), np.uint8))
        except cv2.error:
            raise UserError(
                f"{path}: not a YuNet model that OpenCV {cv2.__version__} can run; get one from {YUNET_URL}"
            ) from None

    def detect(self, image_HW3: np.ndarray) -> list[Face]:
        """See Detector.detect."""
        image_HW3 = cv2.cvtColor(image_HW3, cv2.COLOR_RGB2BGR)
        longer = max(image_HW3.shape[:2])
        scales = [side / longer for side in _LONGER_SIDES if side <= 2 * longer]
        return merge_detections([face for scale in scales or [2.0] for face in self._detect_at(image_HW3, scale)])

    def _detect_at(self, image_HW3: np.ndarray, scale: float) -> list[tuple[Face, float]]:
        """Returns faces in pixels of the photograph, each with its width at the size of the detection."""
        height, width = (max(round(side * scale), 1) for side in image_HW3.shape[:2])
        resampling = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
        self._net.setInputSize((width, height))
        detection_N15 = self._net.detect(cv2.resize(image_HW3, (width, height), interpolation=resampling))[1]
        if detection_N15 is None:
            return []
        per_pixel_2 = np.array([image_HW3.shape[1] / width, image_HW3.shape[0] / height])
        faces = []
        for row_15 in detection_N15[np.isfinite(detection_N15).all(1)].astype(np.float64):
            corner_22 = np.stack([row_15[:2], row_15[:2] + row_15[2:4]]) * per_pixel_2
            landmark_52 = row_15[4:14].reshape(5, 2) * per_pixel_2
            faces.append((Face(corner_22.ravel(), landmark_52, float(row_15[14])), float(row_15[2])))
        return faces


def merge_detections(detections: list[tuple[Face, float]]) -> list[Face]:
    """Returns each face once, with the best score and the mean box and landmarks; input are faces and their widths."""
    pending, faces = sorted(detections, key=lambda pair: -pair[0].score), []
    while pending:
        best = pending[0][0]
        trusted, rest = [], []
        for face, width in pending:
            iou, inside = box_overlap(face.box_4, best.box_4)
            if iou <= _SAME_FACE_IOU and inside <= _NESTED_SHARE and face is not best:
                rest.append((face, width))
            elif iou > _SAME_FACE_IOU and _TRUSTED_WIDTHS[0] <= width <= _TRUSTED_WIDTHS[1]:
                trusted.append(face)
        pending, trusted = rest, trusted or [best]
        box_4 = np.mean([face.box_4 for face in trusted], axis=0)
        faces.append(Face(box_4, np.mean([face.landmark_52 for face in trusted], axis=0), best.score))
    return faces


def box_overlap(box_4: np.ndarray, other_4: np.ndarray) -> tuple[float, float]:
    """Returns the intersection over union of two boxes, and the share of the first inside the second."""
    low_2, high_2 = np.maximum(box_4[:2], other_4[:2]), np.minimum(box_4[2:], other_4[2:])
    intersection = np.clip(high_2 - low_2, 0, None).prod()
    first, second = (box_4[2:] - box_4[:2]).prod(), (other_4[2:] - other_4[:2]).prod()
    return intersection / max(first + second - intersection, 1e-9), intersection / max(first, 1e-9)


INSIGHTFACE_URL = "https://github.com/deepinsight/insightface/releases/tag/model-zoo"
_INSIGHTFACE_FILES = ("det_*.onnx", "scrfd_*.onnx")
_INPUT_SIZES = [(128, 128), (640, 640)]
"""Input sizes (width, height), the defaults of the package."""
_MAX_ASPECT_RATIO = _INPUT_SIZES[0][0]
"""Aspect ratio from which a photograph has no pixels left at the smaller input size, which makes the package fail; at
the larger one its faces have five pixels."""


class InsightFaceDetector:
    """InsightFace detector in `root`: an .onnx file, the folder of a pack, or a folder with models/PACK.

    Raises UserError if there is none, more than one, or a file that is not a detector with landmarks.
    """

    def __init__(self, root: Path, min_score: float = 0.5) -> None:
        path = find_detector_file(root)
        from insightface.model_zoo import get_model

        self.name = f"insightface:{path.name} sha256:{sha256_of(path)[:12]}"
        self.min_score = min_score
        try:
            self._model = get_model(str(path), download=False)
        except Exception as error:  # those of onnxruntime and protobuf share no base class
            raise UserError(
                f"{path}: cannot be loaded ({str(error).splitlines()[0]}); get it from {INSIGHTFACE_URL}"
            ) from None
        if getattr(self._model, "taskname", None) != "detection" or not self._model.use_kps:
            raise UserError(f"{path}: not a detector with five landmarks; get a model pack from {INSIGHTFACE_URL}")
        self._model.prepare(0, input_size=_INPUT_SIZES, det_thresh=min_score)

    def detect(self, image_HW3: np.ndarray) -> list[Face]:
        """See Detector.detect."""
        height, width = image_HW3.shape[:2]
        if max(height, width) >= _MAX_ASPECT_RATIO * min(height, width):
            return []
        box_N5, landmark_N52 = self._model.detect(np.ascontiguousarray(image_HW3[:, :, ::-1]))
        pairs = zip(box_N5.astype(np.float64), landmark_N52.astype(np.float64), strict=True)
        return [Face(box_5[:4], landmark_52, float(box_5[4])) for box_5, landmark_52 in pairs]


def find_detector_file(root: Path) -> Path:
    """Returns the only detector file in `root`. Raises UserError with the source of model packs."""
    if root.is_file():
        return root
    folders = [root, *sorted(root.glob("models/*")), *sorted(root.glob("*"))]
    paths = sorted(
        {path for folder in folders for name in _INSIGHTFACE_FILES for path in folder.glob(name) if path.is_file()}
    )
    if not paths:
        raise UserError(
            f"{root}: has no InsightFace detector ({' or '.join(_INSIGHTFACE_FILES)}); get a model pack such as "
            f"buffalo_l.zip from {INSIGHTFACE_URL}, check its licence, and unpack it to {root / 'models' / 'buffalo_l'}"
        )
    if len(paths) > 1:
        raise UserError(f"{root}: has several detectors; pass one of {', '.join(str(path) for path in paths)}")
    return paths[0]


DETECTORS = {"yunet": YuNet, "insightface": InsightFaceDetector}


def open_detector(text: str, min_score: float | None = None) -> Detector:
    """Returns the detector `KIND:PATH`, with its default smallest score if `min_score` is None.

    Raises UserError on an unknown kind or a missing file.
    """
    kind, _, path = text.partition(":")
    if kind not in DETECTORS or not path:
        raise UserError(f"--detector {text}: expected one of {', '.join(f'{name}:PATH' for name in DETECTORS)}")
    return DETECTORS[kind](Path(path).expanduser(), **({} if min_score is None else {"min_score": min_score}))
