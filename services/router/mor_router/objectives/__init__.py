"""Objectives: the store, anchor uploads and scores, gate versions, and the gates that are active."""
