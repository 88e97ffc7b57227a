"""What the bootstrap cell of a notebook calls: the pack, where the learner stopped, and a copy that outlives a session.

Free Colab and Kaggle take their machines away without asking. There, what the session lacks is installed, an earlier
copy of the pack is taken up, and after each cell that changed the pack the copy is brought up to it; a copy in Drive
also gets the snapshots of a training while it runs. On any other machine the pack is simply opened.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from labkit.environment import PACKAGES, in_colab, in_kaggle, installed_version, unwatched, version_warnings
from labkit.errors import LabError
from labkit.evidence import MANIFEST, Entry, Pack, read_manifest
from labkit.layout import ROOT
from labkit.routes import load_route
from labkit.verification.rules import RULES
from labkit.workbook.install import install_missing
from labkit.workbook.lessons import LESSONS
from labkit.workbook.mirror import Copy, FolderCopy, ZipCopy, restore, save
from labkit.workbook.packs import check as check_lesson
from labkit.workbook.packs import open_pack
from labkit.workbook.unfinished import UnfinishedRuns

CONTENT, KAGGLE_INPUT = Path("/content"), Path("/kaggle/input")
IN_DRIVE = "open-llm-workbook"  # the folder in the learner's Drive


def begin(route: str, evidence_dir: str | Path = "") -> Pack:
    """Open the pack as `open_pack` does, say where the learner stopped, and in a hosted session keep a second copy.

    Raises LabError as `open_pack` and `install_missing` do; a copy that cannot be read or written is told, never fatal.
    """
    pack = open_pack(route, evidence_dir)
    if not (in_colab() or in_kaggle()):
        print(where_you_stopped(pack))
        return pack
    keeper = Keeper(pack, second_copy(pack))
    told = keeper.take_up()
    print(where_you_stopped(pack))
    for line in (*told, *hints(route), *ready()):
        print(line)
    print(keeper.keep())
    keeper.after_each_cell()
    return pack


def where_you_stopped(pack: Pack) -> str:
    """One line: the first required artifact that is not in the pack yet, and the notebook that writes it."""
    written = read_manifest(pack.folder)["files"]
    required = load_route(pack.route).required_artifacts
    rules = sorted((rule for rule in RULES if rule.name in required), key=lambda rule: rule.lessons[0])
    open_rules = [rule for rule in rules if not _there(pack, rule.name, written)]
    if not open_rules:
        return "Continue where you stopped: every file is written; 13_0_checklist.ipynb reads the whole pack."
    number = open_rules[0].lessons[0]
    notebook = next(entry.file for entry in LESSONS if entry.number == number)
    if not any(pack.path(name).is_file() for name in written):
        return f"Continue where you stopped: nothing is written yet, so begin with {notebook}."
    done = f"{len(rules) - len(open_rules)} of {len(rules)} required artifacts are written"
    return f"Continue where you stopped: {notebook}, {open_rules[0].name} comes next; {done}."


def _there(pack: Pack, name: str, written: dict) -> bool:
    """Whether the manifest names the file, or one below the folder, and it is on the disk."""
    return any(pack.path(file).is_file() for file in written if file == name or file.startswith(f"{name.rstrip('/')}/"))


def hints(route: str) -> list[str]:
    """What to change in the form of the parameters, or in the Files panel, before going on."""
    lines = []
    if route == "local_cpu":
        lines.append('This is a hosted session: choose route = "free_colab" in the parameters, and run from the top.')
    if in_colab() and not drive():
        lines.append(
            "Drive is not mounted, so the copy is a zip file that you must download. To keep it in Drive, press Mount "
            "Drive in the Files panel and run this cell again."
        )
    return lines


def ready() -> list[str]:
    """Install what the session lacks; one line for what was installed, one for each reason to restart."""
    names = install_missing()
    lines = [f"Installed: {', '.join(names)}."] if names else []
    versions = {name: version for name in PACKAGES if (version := installed_version(name))}
    return lines + [f"Restart the session: {warning}." for warning in version_warnings(versions)]


def home() -> Path:
    """The folder of the session that its Files panel shows: Colab's /content, else what the workbook lies in."""
    return CONTENT if CONTENT.is_dir() else ROOT.parent


def drive() -> Path | None:
    """The learner's Drive where it is mounted, as drive.mount('/content/drive') does."""
    found = home() / "drive" / "MyDrive"
    return found if found.is_dir() else None


def second_copy(pack: Pack) -> Copy:
    if in_colab() and (mounted := drive()):
        folder = mounted / IN_DRIVE / "evidence" / pack.route
        return FolderCopy(folder, f"Drive, {IN_DRIVE}/evidence/{pack.route}", pack.route)
    name = archive_name(pack.route)
    return ZipCopy(home() / name, f"{name} in {'the output folder' if in_kaggle() else 'the Files panel'}", pack.route)


def archive_name(route: str) -> str:
    return f"evidence_{route}.zip"


@dataclass
class Keeper:
    """Keeps `copy` beside `pack` while a notebook runs."""

    pack: Pack
    copy: Copy
    _seen: int = 0  # when the manifest was last copied, as its modification time in nanoseconds
    _held: dict[str, Entry] = field(default_factory=dict)  # what the copy holds since then

    def __post_init__(self):
        folder = self.copy.folder if isinstance(self.copy, FolderCopy) else None
        self._runs = UnfinishedRuns(self.pack.folder, folder) if folder else None

    def take_up(self) -> list[str]:
        """Take into the pack what an earlier session saved; what to say about it."""
        earlier = [self.copy, *uploads(self.pack.route)]
        told = []
        for copy in earlier:
            try:
                if names := restore(self.pack, copy):
                    told.append(f"Taken up from {copy.where}: {len(names)} files.")
            except (OSError, LabError) as error:
                told.append(f"Not taken up from {copy.where}: {error}")
        return told + self._take_up_runs()

    def _take_up_runs(self) -> list[str]:
        try:
            names = self._runs.take_up() if self._runs else []
        except OSError as error:
            return [f"A training that was under way is not taken up from {self.copy.where}: {error}"]
        return [f"Taken up: a training that was under way ({name}); its cell goes on with it." for name in names]

    def keep(self) -> str:
        """Bring the copy up to the pack; what to say about it."""
        try:
            self._held = save(self.pack, self.copy, self._held)
            self._seen = self._written()
        except (OSError, LabError) as error:
            return f"NOT saved to {self.copy.where}: {error}. The pack is still on this session's disk."
        offer = "" if isinstance(self.copy, FolderCopy) or in_kaggle() else "; download it before you leave"
        return f"Saved: {len(self._held)} files of the pack in {self.copy.where}{offer}."

    def after_each_cell(self) -> None:
        """Look after every cell whether the pack has changed. Running the bootstrap cell again changes nothing."""
        from IPython import get_ipython

        shell = get_ipython()
        if shell is None:
            return
        for earlier in _LISTENING:
            shell.events.unregister("post_run_cell", earlier)
        for earlier in _KEEPERS:
            earlier.stop()
        _LISTENING[:] = [self._after_cell]
        _KEEPERS[:] = [self]
        shell.events.register("post_run_cell", self._after_cell)
        if self._runs:
            self._runs.watch()

    def stop(self) -> None:
        """Another keeper takes over."""
        if self._runs:
            self._runs.stop()

    def _after_cell(self, *_: object) -> None:
        if self._runs:
            self._runs.try_to_keep()
        if self._written() != self._seen:
            print(self.keep())

    def _written(self) -> int:
        return (self.pack.folder / MANIFEST).stat().st_mtime_ns

    def offer_download(self) -> None:
        """At the end of a lesson, where somebody looks at a browser: Colab's own download of the zip file."""
        if isinstance(self.copy, ZipCopy) and in_colab() and not unwatched():
            print(self.keep())
            from google.colab import files

            files.download(str(self.copy.path))


_KEEPERS: list[Keeper] = []
_LISTENING: list[Callable] = []


def uploads(route: str) -> list[Copy]:
    """Zip files of earlier sessions that Kaggle lends as inputs; what lies in the session's own folder is its copy."""
    found = sorted(KAGGLE_INPUT.rglob(archive_name(route))) if in_kaggle() else []
    return [ZipCopy(path, f"the input {path.name}", route) for path in found]


def check(number: str, pack: Pack) -> None:
    """What closes a lesson: its verdicts (`labkit.workbook.packs.check`), and in Colab the download of the pack."""
    check_lesson(number, pack)
    for keeper in _KEEPERS:
        keeper.offer_download()
