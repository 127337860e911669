"""The moves: each arrow of the state machine is one function, for one job or many, in one short transaction a chunk."""
