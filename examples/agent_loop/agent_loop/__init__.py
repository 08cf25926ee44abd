"""An agent on AsyncAnthropic under Trio, whose tools may run in the background."""
