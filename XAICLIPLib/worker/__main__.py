"""``python -m XAICLIPLib.worker``: the worker process, which computes for 3D Slicer."""

import sys

from XAICLIPLib.worker.process import main

if __name__ == "__main__":
    sys.exit(main())
