"""Settings files; each is a whole run."""
