"""Wrong on purpose: what the machines of the kit must find."""
