"""`python -m tests.fuzz TARGET` fuzzes one decoder with atheris; `--write-corpus` writes the seeds anew.

New inputs and findings go to build/fuzz/TARGET. Make a finding small with `--minimise FILE`, put it into
tests/fuzz/corpus/TARGET as `found-...`, and mend the code: a test sends the whole corpus through the targets.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

NAMES = ("wire", "presence", "topic", "txt")
CORPUS = Path(__file__).parent / "corpus"
FINDINGS = Path("build") / "fuzz"
MAX_LEN = {"wire": 16_384, "presence": 2_048, "topic": 512, "txt": 2_048}


def main() -> int:
    """Run the command line; what atheris runs does not return."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description="fuzz one decoder with atheris")
    parser.add_argument("target", nargs="?", choices=NAMES)
    parser.add_argument("--seconds", type=int, default=120)
    parser.add_argument("--minimise", type=Path, metavar="FILE", help="make a finding small")
    parser.add_argument("--write-corpus", action="store_true", help="write tests/fuzz/corpus anew")
    arguments = parser.parse_args()
    if arguments.write_corpus:
        from tests.fuzz.corpus import write

        print(f"{write()} files written to {CORPUS}")
        return 0
    if arguments.target is None:
        parser.error("name a target, or say --write-corpus")
    return fuzz(arguments.target, arguments.seconds, arguments.minimise)


def fuzz(target: str, seconds: int, finding: Path | None) -> int:
    """Let libFuzzer run one target, with the agent and the target instrumented as they are imported."""
    try:
        import atheris
    except ImportError:
        sys.stderr.write("atheris is not installed (Linux on x86-64 only): pip install 'skiptrain-agent[fuzz]'\n")
        return 1
    with atheris.instrument_imports(include=["agent", "tests"]):
        from tests.fuzz.targets import TARGETS
    folder = FINDINGS / target
    (folder / "inputs").mkdir(parents=True, exist_ok=True)
    options = [f"-max_total_time={seconds}", f"-max_len={MAX_LEN[target]}", f"-artifact_prefix={folder}/"]
    where = [str(folder / "inputs"), str(CORPUS / target)]
    if finding is not None:
        options, where = [*options, "-minimize_crash=1"], [str(finding)]
    atheris.Setup([sys.argv[0], *options, *where], TARGETS[target])
    atheris.Fuzz()
    return 0


if __name__ == "__main__":
    sys.exit(main())
