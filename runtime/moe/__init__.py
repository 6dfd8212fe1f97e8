"""Mixture-of-Experts models in plain torch: routers, experts, attention, checkpoints. No Ray."""
