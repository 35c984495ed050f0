"""Inference with trained models: loading, prediction, embedding, verification sets."""
