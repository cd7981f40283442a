"""Views of a model on a prompt: attention patterns of a circuit's heads, and tokens coloured by numbers."""
