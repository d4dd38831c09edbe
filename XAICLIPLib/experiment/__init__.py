"""The paper's experiment on labelled data sets, with controls. Imports all that explains; only commands import it."""
