"""Typed configuration: schema and loading."""

from facelt.config.loading import load_config
from facelt.config.strict import Strict

__all__ = ["Strict", "load_config"]
