"""People by name: enrolled with samples of one model's embeddings, searched exactly, unknown below a threshold."""

from facelt.gallery.backend import Backend, Candidate, Count, Found, Removed
from facelt.gallery.gallery import Answer, Calibration, Gallery, Identification
from facelt.gallery.local import LocalGallery
from facelt.gallery.model_spec import Contract, model_name
from facelt.gallery.samples import Samples

__all__ = [
    "Answer",
    "Backend",
    "Calibration",
    "Candidate",
    "Contract",
    "Count",
    "Found",
    "Gallery",
    "Identification",
    "LocalGallery",
    "Removed",
    "Samples",
    "model_name",
]
