"""Agent tools in the background, under Trio: never lost, doubled or leaked."""
