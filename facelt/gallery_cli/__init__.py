"""`facelt gallery`: people enrolled by name, and who somebody is among them."""

from facelt.gallery_cli.app import app

__all__ = ["app"]
