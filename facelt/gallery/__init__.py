"""Gallery of people: enrolment, exact identification and threshold calibration."""

from facelt.gallery.backend import Backend, Candidate, GalleryCounts, RemovalResult, SearchResult
from facelt.gallery.gallery import Calibration, Gallery, Identification, ProbeResult
from facelt.gallery.local import LocalGallery
from facelt.gallery.model_spec import ModelSpec, model_name
from facelt.gallery.samples import Samples

__all__ = [
    "Backend",
    "Calibration",
    "Candidate",
    "Gallery",
    "GalleryCounts",
    "Identification",
    "LocalGallery",
    "ModelSpec",
    "ProbeResult",
    "RemovalResult",
    "Samples",
    "SearchResult",
    "model_name",
]
