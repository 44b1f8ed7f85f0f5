"""Editors: one method a file, a frozen dataclass that is its own configuration."""
