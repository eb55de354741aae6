"""`python -m toolbox`: what yichuidingyin.sh hands over to."""

import sys

from toolbox.cli import main

sys.exit(main(sys.argv[1:]))
