"""What is said of aligned faces and of photographs without: the columns of faces.csv and failures.csv."""

from facelt.alignment.faces import AlignedFace
from facelt.alignment.survey import Failure, Found

POINTS = ("eye_left", "eye_right", "nose", "mouth_left", "mouth_right")
"""Left and right of the picture, as one looks at it."""
PLACE = ("left", "top", "right", "bottom", *(f"{point}_{axis}" for point in POINTS for axis in "xy"))
QUALITY = ("score", "eye_distance", "sharpness", "yaw", "pitch", "roll")
FACES = ("image", "identity", "source", "face", "faces", *QUALITY, *PLACE)
FAILURES = ("source", "identity", "kind", "reason")


def quality_row(face: AlignedFace) -> list[float]:
    """The values under `QUALITY`, rounded to what they can tell."""
    return [round(face.face.score, 3), *(round(value, 1) for value in face.quality)]


def face_row(image: str, found: Found, face: AlignedFace) -> list[object]:
    """The values under `FACES`. Places are pixels of the photograph turned upright."""
    place = [*face.face.box_4.tolist(), *face.face.landmark_52.ravel().tolist()]
    who = [image, found.photograph.identity, found.photograph.name, face.number, found.shown]
    return [*who, *quality_row(face), *(round(value, 1) for value in place)]


def failure_row(failure: Failure) -> list[str]:
    """The values under `FAILURES`."""
    return [failure.photograph.name, failure.photograph.identity, failure.kind, failure.reason]
