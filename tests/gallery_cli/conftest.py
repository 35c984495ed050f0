"""The engine's small trained model is enough here."""

from tests.training.fixtures import _thin_backbone, finished_run

__all__ = ["_thin_backbone", "finished_run"]
