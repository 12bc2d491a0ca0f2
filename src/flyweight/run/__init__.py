"""Runtimes that execute artifacts; one file a runtime."""
