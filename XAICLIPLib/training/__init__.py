"""How the shipped models were made: seeded, resumable scripts over ``../shared/data``."""
