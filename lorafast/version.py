"""The program's version; packaging reads it here."""

__version__ = "0.1.0"
