"""Exact search of a memory-mapped database in blocks, behind an engine small enough to have several."""

from facelt.search.blocks import BadRow, Rows
from facelt.search.count import count_above
from facelt.search.engine import Engine, EngineName, open_engine
from facelt.search.exact import similarities
from facelt.search.search import Search, open_search
from facelt.search.sound import top_k_sound
from facelt.search.top_k import top_k

__all__ = [
    "BadRow",
    "Engine",
    "EngineName",
    "Rows",
    "Search",
    "count_above",
    "open_engine",
    "open_search",
    "similarities",
    "top_k",
    "top_k_sound",
]
