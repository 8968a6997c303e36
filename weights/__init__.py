"""Trained weights, found by aiocodec.pretrained."""
