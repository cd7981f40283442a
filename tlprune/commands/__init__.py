"""What the command line is made of: its commands, their words and settings, and what a shell completes."""
