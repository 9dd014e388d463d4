"""Frozen embeddings e(x) of an input (text and images) and e(o) of an objective's text."""

from mor_router.embedding.embedder import HONEYPOTS, LIVE, Embedder, GateInput, build_embedder, embedding_for

__all__ = ["HONEYPOTS", "LIVE", "Embedder", "GateInput", "build_embedder", "embedding_for"]
