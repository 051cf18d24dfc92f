"""What is written down of a run: its facts, its folder, what it answered, what it learnt from."""
