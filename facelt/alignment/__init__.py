"""From photographs to aligned faces: detection, five landmarks, ArcFace's template, quality. No torch."""

from pathlib import Path

from facelt.alignment.faces import AlignedFace, Detector, Face, align_faces
from facelt.alignment.insightface_detector import InsightFaceDetector
from facelt.alignment.yunet import YuNet
from facelt.errors import UserError

DETECTORS = {"yunet": YuNet, "insightface": InsightFaceDetector}

__all__ = ["DETECTORS", "AlignedFace", "Detector", "Face", "align_faces", "open_detector"]


def open_detector(text: str, min_score: float | None = None) -> Detector:
    """The detector that `KIND:PATH` names, with its own least score where `min_score` is None.

    Raises UserError where there is no such kind or file.
    """
    kind, _, path = text.partition(":")
    if kind not in DETECTORS or not path:
        raise UserError(f"--detector {text}: expected one of {', '.join(f'{name}:PATH' for name in DETECTORS)}")
    return DETECTORS[kind](Path(path).expanduser(), **({} if min_score is None else {"min_score": min_score}))
