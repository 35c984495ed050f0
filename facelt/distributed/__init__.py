"""Distributed training: collectives, launch, DDP, class-sharded logits."""
