"""A volume cut into pieces, and which sets of them are removed together."""
