"""Drawing token by token."""
