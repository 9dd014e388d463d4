"""Populations of the experiment, a folder each; ``quality.population`` states the content of such a folder."""
