"""Exact search of a memory-mapped database in blocks, behind an engine small enough to have several."""

from facelt.search.blocks import BadRow, Rows
from facelt.search.count import count_above
from facelt.search.engine import EngineName
from facelt.search.exact import similarities
from facelt.search.search import Search, open_search
from facelt.search.top_k import top_k

__all__ = ["BadRow", "EngineName", "Rows", "Search", "count_above", "open_search", "similarities", "top_k"]
