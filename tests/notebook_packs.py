"""How `make test` spreads the tests over processes, and where the notebooks write when nbval runs them."""

import re
import shutil
import tempfile

import pytest
from xdist.scheduler import LoadFileScheduling

# These read no file that another lesson has left, so each has a pack, and may have a process, of its own.
ALONE = re.compile(r"13_6_\w+\.ipynb")


def scope(nodeid: str) -> str:
    """What stays together in one process: a test file, or the notebooks, which fill one pack in their order."""
    file = nodeid.split("::", 1)[0]
    return file if not file.endswith(".ipynb") or ALONE.search(file) else "notebooks"


class ByFileAndPack(LoadFileScheduling):
    """`--dist loadfile` with the notebooks of one pack as one file."""

    def _split_scope(self, nodeid: str) -> str:
        return scope(nodeid)


class NotebookPacks:
    """The plugin that tests/conftest.py registers: a notebook's kernel finds an empty pack, and never the learner's."""

    def __init__(self) -> None:
        self._packs: dict[str, str] = {}

    def pytest_xdist_make_scheduler(self, config: pytest.Config, log):
        return ByFileAndPack(config, log) if config.getvalue("dist") == "loadfile" else None

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_setup(self, item: pytest.Item):
        """The kernel starts in the set-up of the first cell, so nothing else needs to see the variable."""
        if item.path.suffix != ".ipynb":
            return (yield)
        name = scope(item.nodeid)
        if name not in self._packs:
            self._packs[name] = tempfile.mkdtemp(prefix="labkit-pack-")
        with pytest.MonkeyPatch.context() as patched:
            patched.setenv("LABKIT_EVIDENCE", self._packs[name])
            return (yield)

    def pytest_sessionfinish(self) -> None:
        for folder in self._packs.values():
            shutil.rmtree(folder, ignore_errors=True)
