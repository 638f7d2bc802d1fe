"""What a run takes of memory and time, known before it starts."""
