"""The official conformance suite of MCP, against our server over HTTP; ``nox -s conformance``."""
