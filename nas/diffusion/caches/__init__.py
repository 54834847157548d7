"""Drawing with units of the network that are kept from step to step."""
