"""Labelled sentences and pairs, and tasks of them for models that classify."""
