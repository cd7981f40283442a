"""Compiled models: programs in RASP as transformer weights, their complete data, and their circuits, all computed."""
