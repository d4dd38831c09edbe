"""Labelled data sets as they are published, and those of users."""
