"""Commands for handing the workbook to learners: bundle, badges."""

from pathlib import Path
from typing import Annotated

import typer

from labkit.cli.app import app


@app.command()
def bundle(
    out: Annotated[Path | None, typer.Option("--out", help="the archive (default: dist/workbook.zip)")] = None,
) -> None:
    """Pack notebooks, package and data into one zip file to upload to Colab or Kaggle."""
    from labkit.workbook.bundle import ROOT, write_bundle

    made = write_bundle(out) if out else write_bundle()
    shown = made.path.relative_to(ROOT) if made.path.is_relative_to(ROOT) else made.path
    print(f"{shown}: {made.files} files, {made.bytes / 1e6:.1f} MB")


@app.command()
def badges(
    check: Annotated[bool, typer.Option("--check", help="change nothing; exit 1 when a badge is wrong")] = False,
) -> None:
    """Write the Colab and Kaggle badges of data/course.yaml into the notebooks."""
    from labkit.workbook.course import load_course, write_badges, wrong_badges

    repository = load_course().repository
    changed = wrong_badges() if check else write_badges()
    print(f"repository: {repository or 'none in data/course.yaml, so the notebooks say how to upload'}")
    print("\n".join(f"{'wrong' if check else 'written'}: {name}" for name in changed) or "every notebook agrees")
    raise typer.Exit(1 if check and changed else 0)
