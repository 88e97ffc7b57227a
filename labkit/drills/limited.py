"""`python -m labkit.drills.limited GIB ...`: the server under a limit on the memory that its process may map (Linux).

What the libraries take differs from build to build by gigabytes, so the limit counts from there: GIB more than the
process has mapped once they are imported. The other words are those of `python -m labkit.serving`.
"""

import sys

import psutil


def main() -> int:
    import resource

    import labkit.generation.transformers_network
    import labkit.serving.app  # noqa: F401
    from labkit.serving.__main__ import main as serve

    most = psutil.Process().memory_info().vms + int(sys.argv.pop(1)) * 2**30
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))
    return serve()


if __name__ == "__main__":
    sys.exit(main())
