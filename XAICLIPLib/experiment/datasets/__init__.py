"""Readers of labelled datasets: published ones, and those of users."""
