"""Frozen embeddings e(x) of an input (text and images) and e(o) of an objective's text."""

from mor_router.embedding.embedder import Embedder, GateInput, build_embedder

__all__ = ["Embedder", "GateInput", "build_embedder"]
