"""Print what an installed distribution requires in this environment, less the names given: for ``make bench-peers``."""

import sys
from importlib.metadata import requires

from pip._vendor.packaging.requirements import Requirement
from pip._vendor.packaging.utils import canonicalize_name


def main(distribution: str, *unused: str) -> None:
    """One requirement a line, as pip takes them; optional extras are left out."""
    left_out = {canonicalize_name(name) for name in unused}
    for line in requires(distribution) or ():
        requirement = Requirement(line)
        needed = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
        if needed and canonicalize_name(requirement.name) not in left_out:
            requirement.marker = None
            print(requirement)


if __name__ == "__main__":
    main(*sys.argv[1:])
