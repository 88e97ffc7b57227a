"""A plugin: how the tests are spread over processes, and where the notebooks write when nbval runs them."""

import re
import shutil
import tempfile
from pathlib import Path

import pytest
from xdist.scheduler import LoadFileScheduling

# These read no file that another lesson has left, so each may have a process of its own. It begins with the reference
# pack, so that what it leaves must agree with the files of the other lessons.
ALONE = re.compile(r"13_[67]_\w+\.ipynb$")
REFERENCE = Path(__file__).parents[1] / "evidence" / "reference" / "local_cpu"
PACKS = pytest.StashKey[dict[str, str]]()


def together(file: str) -> str:
    """What stays in one process: a test file, or all notebooks that fill one pack, in their order."""
    return file if not file.endswith(".ipynb") or ALONE.search(file) else "notebooks"


class ByFileAndPack(LoadFileScheduling):
    """`--dist loadfile` with the notebooks of one pack as one file."""

    def _split_scope(self, nodeid: str) -> str:
        return together(nodeid.split("::", 1)[0])


def pytest_xdist_make_scheduler(config: pytest.Config, log):
    return ByFileAndPack(config, log) if config.getvalue("dist") == "loadfile" else None


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item: pytest.Item):
    """A notebook's kernel starts in the set-up of its first cell; nothing else needs to see its pack."""
    if item.path.suffix != ".ipynb":
        return (yield)
    packs = item.config.stash.setdefault(PACKS, {})
    name = together(item.path.name)
    if name not in packs:
        packs[name] = tempfile.mkdtemp(prefix="labkit-pack-")
        if ALONE.search(name):
            shutil.copytree(REFERENCE, packs[name], dirs_exist_ok=True)
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("LABKIT_EVIDENCE", packs[name])
        return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None):
    """nbval sees that every cell ran; after the last one of a notebook the verifier says whether its files agree."""
    ended = yield
    if item.path.suffix == ".ipynb" and (nextitem is None or nextitem.path != item.path):
        from labkit.verification import Verdict, verify

        found = verify(Path(item.config.stash[PACKS][together(item.path.name)])).findings
        said = [f"{one.name}: {one.detail}" for one in found if one.verdict is Verdict.CONTRADICTED]
        assert not said, f"after {item.path.name} the pack contradicts itself: {said}"
    return ended


def pytest_unconfigure(config: pytest.Config) -> None:
    for folder in config.stash.get(PACKS, {}).values():
        shutil.rmtree(folder, ignore_errors=True)
