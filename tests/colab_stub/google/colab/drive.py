import os
from pathlib import Path


def mount(mountpoint: str, force_remount: bool = False) -> None:
    """What lies in a learner's Drive outlives the session, so it lies outside of the session's folder."""
    place = Path(mountpoint)
    place.mkdir(parents=True, exist_ok=True)
    if not (place / "MyDrive").exists():
        (place / "MyDrive").symlink_to(os.environ["STUB_DRIVE"], target_is_directory=True)
    print(f"Mounted at {mountpoint}")
