"""An OCI runtime that gives every container its own microVM, cloned from a template."""

__version__ = "0.1.0"
