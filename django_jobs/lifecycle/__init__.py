"""The moves: each arrow of the state machine is one function, one compare-and-set, one short transaction."""
