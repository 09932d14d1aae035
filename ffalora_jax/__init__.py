"""Differentially private federated LoRA fine-tuning in JAX/Flax."""
