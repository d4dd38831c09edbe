"""The methods that explain, and what they share. Imports scoring and what lies below it."""
