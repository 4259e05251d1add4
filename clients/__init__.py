"""The site: what runs in a hospital."""
