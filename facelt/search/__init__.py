"""Exact search of a memory-mapped database in blocks, behind an engine small enough to have several."""

from facelt.search.blocks import BadRow, Rows
from facelt.search.count import count_above
from facelt.search.engine import Engine, FaissEngine
from facelt.search.exact import similarities
from facelt.search.top_k import top_k

__all__ = ["BadRow", "Engine", "FaissEngine", "Rows", "count_above", "similarities", "top_k"]
