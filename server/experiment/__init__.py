"""The paper's experiments: its numbers, ours, and both in the form of its tables and figures."""
