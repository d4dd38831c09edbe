"""Programs that feed the library what nobody would write on purpose."""
