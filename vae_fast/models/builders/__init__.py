"""Builders of models from options. ``vae_fast.models.build`` calls them."""
