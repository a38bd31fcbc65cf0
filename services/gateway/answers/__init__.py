"""Reads through the cache, and answers as bytes."""
