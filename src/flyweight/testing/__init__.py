"""Test suites that third-party plug-ins run too."""
