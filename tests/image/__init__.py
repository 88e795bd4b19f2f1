"""Builds the image's file system without Docker: the Dockerfile's own instructions, in a folder."""
