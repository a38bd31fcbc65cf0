"""Peak memory of `relaydesk import` over a large file: a dry run, and a real import when a platform is named.

    python tests/bench/import_memory.py [--gigabytes 1] [--url URL --api-key KEY --organization SLUG]

The file has rows of about 1 kB, so 1 GB is a million tickets; --row-bytes changes that.
"""

import argparse
import csv
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

SENTENCE = "The platform answers slowly since this morning and nobody in our office can sign in any more. "


def generate(file: Path, size: int, row_bytes: int) -> None:
    """Write a CSV of at least `size` bytes, every row a different one."""
    filler = (SENTENCE * (row_bytes // len(SENTENCE) + 1))[: max(row_bytes - 40, 10)]
    with file.open("w", newline="", encoding="utf-8") as opened:
        writer = csv.writer(opened)
        writer.writerow(["issue", "product", "state", "text"])
        number = 0
        while opened.tell() < size:
            for _ in range(1000):
                number += 1
                writer.writerow([f"Complaint {number}", "Mortgage", "AZ", filler])


def run(label: str, arguments: list[str]) -> None:
    """Run the command and print its summary as one line."""
    done = subprocess.run(
        [sys.executable, "-c", "from cli.app import main; main()", "import", *arguments, "--json"],
        stdout=subprocess.PIPE,
        check=False,
    )
    if not done.stdout:
        sys.exit(f"{label}: the command ended with {done.returncode}")
    summary = json.loads(done.stdout)
    print(
        f"{label:8} {summary['rows']:>10,} rows  {summary['created']:>10,} created  {summary['exists']:>10,} exist  "
        f"{summary['refused']:,} refused  {summary['seconds']:8.1f} s  "
        f"{summary['rows'] / summary['seconds']:>8,.0f} rows/s  peak {summary['peak_memory_bytes'] / 1e6:6.1f} MB"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=1.0)
    parser.add_argument("--row-bytes", type=int, default=1000)
    parser.add_argument("--url")
    parser.add_argument("--api-key")
    parser.add_argument("--organization", default="demo")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "large.csv")
        generate(file, int(given.gigabytes * 1e9), given.row_bytes)
        print(f"{file.stat().st_size / 1e9:.2f} GB")
        arguments = [str(file), "--organization", given.organization, "--map", "title=issue"]
        run("dry run", [*arguments, "--dry-run"])
        if given.url:
            if given.api_key:
                os.environ["RELAYDESK_API_KEY"] = given.api_key
            run("import", [*arguments, "--url", given.url])
            run("again", [*arguments, "--url", given.url])


if __name__ == "__main__":
    main()
