"""May brief trials and rules of early stopping be believed? Anchors, zero-cost scores, replays."""
