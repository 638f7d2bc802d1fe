"""The network, forward and backward, with its adapter."""
