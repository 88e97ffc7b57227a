import os


def download(filename: str) -> None:
    with open(os.environ["STUB_DOWNLOADS"], "a", encoding="utf-8") as log:
        log.write(f"{filename}\n")
