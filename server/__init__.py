"""The coordinator: what runs beside the SuperLink."""
