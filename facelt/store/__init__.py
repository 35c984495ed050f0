"""Embedding stores: a folder with one memory-mappable array per kind of embedding, the items and what made them."""

from facelt.store.layout import KINDS, UNIT_KINDS
from facelt.store.reader import EmbeddingStore
from facelt.store.writer import StoreWriter

__all__ = ["KINDS", "UNIT_KINDS", "EmbeddingStore", "StoreWriter"]
