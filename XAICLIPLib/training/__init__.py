"""How the shipped models were made, and how prompts are tuned. Only `commands.tune_prompts` imports it."""
