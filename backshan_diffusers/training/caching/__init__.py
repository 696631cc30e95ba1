"""What is computed once and kept on disk, under names that say what it depends on: pairs, latents, edges, prompts.

Runs may share a cache: a lock keeps two of them from making the same thing. What is complete appears under its name at
once, what a killed run has done is gone on from, and a file of the wrong size is made anew.
"""

from .edges import Edges, cache_edges
from .latents import AT_ONCE, cache_latents, encode, to_pixels
from .pairs import PairArrays, cache_pairs, read_attributes, read_item_ids, rows_key
from .prompts import cache_prompts
from .storage import fingerprint, key_of

__all__ = [
    "AT_ONCE",
    "Edges",
    "PairArrays",
    "cache_edges",
    "cache_latents",
    "cache_pairs",
    "cache_prompts",
    "encode",
    "fingerprint",
    "key_of",
    "read_attributes",
    "read_item_ids",
    "rows_key",
    "to_pixels",
]
