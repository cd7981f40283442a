"""Soft prompts: vectors in front of a text or behind it, attached to a model that stays as it is."""
