"""``python -m XAICLIPLib.worker``: the process that 3D Slicer talks to."""

import sys

from XAICLIPLib.worker.process import main

if __name__ == "__main__":
    sys.exit(main())
