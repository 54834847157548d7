"""What lies in an exported folder beside its networks: what it says of itself, its card, and what draws it without nas."""
