"""The interop suite's parts, one subject a module."""
