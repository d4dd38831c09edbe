"""``python -m XAICLIPLib``: the command ``xaiclip``."""

import sys

from XAICLIPLib.commands.main import main

if __name__ == "__main__":
    sys.exit(main())
