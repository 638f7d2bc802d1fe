"""Ranks: processes, on one machine or on many, that compute a run together and get the bits that one would get."""
