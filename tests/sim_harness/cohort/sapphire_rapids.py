"""The native engine's AMX on an emulated CPU: `python -m tests.sim_harness.cohort.sapphire_rapids BOCHS VMLINUZ`.

BOCHS is the folder in which Bochs was built (./configure --enable-x86-64 --enable-avx --enable-evex --enable-amx
--enable-long-phy-address --with-nogui), VMLINUZ a kernel of Debian's; docs/engines.md says what Bochs lacks. Needs
Debian's busybox-static, cpio, isolinux, syslinux-common and xorriso, and AVX512-BF16 here to compare with. Prints how
far from this machine's kernels a short round comes out there, with AMX and without, and the instructions it took.
"""

from __future__ import annotations

import base64
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.sim_harness.cohort.alone import ROUNDS, Round

LANES = 16
KINDS = {"AVX512-BF16": (False, ("-mno-amx-tile", "-mno-amx-bf16")), "AMX": (True, ())}
NAMES = [name for name in ROUNDS if name != "small-cnn"]
"""In 8x8 pixels it has no convolution that fills a tile."""

INIT = """#!/bin/busybox sh
/bin/busybox mkdir /proc
/bin/busybox mount -t proc proc /proc
/bin/busybox grep -m1 -o -w amx_bf16 /proc/cpuinfo
for round in /rounds/*; do
  cd $round
  echo "[$(./round $(/bin/busybox cat arguments))"
  /bin/busybox base64 out
  echo "]"
done
echo "[end]"
/bin/busybox stty -F /dev/console sane
/bin/busybox poweroff -f
"""
# Bochs says that the CPU has "fast short REP MOV" (580) but not that string instructions are fast; Linux wants both.
BOOT = """SERIAL 0 115200
DEFAULT linux
LABEL linux
 KERNEL /vmlinuz
 APPEND initrd=/initrd console=ttyS0 quiet mitigations=off clearcpuid=580 random.trust_cpu=on lpj=1000000
"""
BOCHS = """megs: 1024
cpu: model=sapphire_rapids, count=1, ips=50000000, reset_on_triple_fault=0
romimage: file={bochs}/bios/BIOS-bochs-latest
vgaromimage: file={bochs}/bios/VGABIOS-lgpl/VGABIOS-lgpl-latest.bin
ata0: enabled=1
ata0-master: type=cdrom, path=boot.iso, status=inserted
boot: cdrom
com1: enabled=1, mode=file, dev=serial
clock: sync=none
log: log
display_library: nogui
"""


def main(bochs: Path, kernel: Path) -> None:
    """Boot a machine that does all rounds, and compare what it wrote to its serial line."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        rounds = {(name, kind): prepare(name, kind, folder) for name in NAMES for kind in KINDS}
        said = boot(folder, bochs.resolve(), kernel)
        if "amx_bf16" not in said:
            sys.exit("Linux sees no amx_bf16 there")
        for (name, kind), (ticks, out) in zip(rounds, re.findall(r"\[(\d+)\n([\w+/=\s]+)\]", said), strict=True):
            off = rounds[name, kind].off(base64.b64decode(out))
            print(f"{name}, {kind}: {off:.2g} off, {int(ticks):,} instructions")


def prepare(name: str, kind: str, folder: Path) -> Round:
    """Write one round's program and input where the machine finds it, in the order of their names."""
    place = folder / "root/rounds" / f"{NAMES.index(name)}-{list(KINDS).index(kind)}"
    place.mkdir(parents=True)
    amx, flags = KINDS[kind]
    done = Round.at(name, "bf16", place)
    done.compile(place / "round", "cc", "sapphirerapids", *flags, lanes=LANES, bf16=True, amx=amx)
    (place / "arguments").write_text(" ".join(done.arguments))
    return done


def boot(folder: Path, bochs: Path, kernel: Path) -> str:
    """Return what a machine with that root wrote, once it is done."""
    root, disc = folder / "root", folder / "disc"
    (root / "bin").mkdir()
    (root / "dev").mkdir()
    shutil.copy("/bin/busybox", root / "bin")
    (root / "init").write_text(INIT)
    (root / "init").chmod(0o755)
    (disc / "isolinux").mkdir(parents=True)
    for file in ("/usr/lib/ISOLINUX/isolinux.bin", "/usr/lib/syslinux/modules/bios/ldlinux.c32"):
        shutil.copy(file, disc / "isolinux")
    (disc / "isolinux/isolinux.cfg").write_text(BOOT)
    shutil.copy(kernel, disc / "vmlinuz")
    names = "\n".join(str(path.relative_to(root)) for path in sorted(root.rglob("*")))
    with (disc / "initrd").open("wb") as initrd:
        command = ["cpio", "-o", "-H", "newc", "--quiet"]
        subprocess.run(command, cwd=root, input=names.encode(), stdout=initrd, check=True)
    image = "xorriso -as mkisofs -quiet -o boot.iso -b isolinux/isolinux.bin -c isolinux/boot.cat -no-emul-boot"
    subprocess.run([*image.split(), "-boot-load-size", "4", "-boot-info-table", "disc"], cwd=folder, check=True)
    (folder / "bochsrc").write_text(BOCHS.format(bochs=bochs))
    with (folder / "output").open("wb") as output:
        command = [str(bochs / "bochs"), "-q", "-f", "bochsrc"]
        subprocess.run(command, cwd=folder, stdin=subprocess.DEVNULL, stdout=output, stderr=output, check=False)
    said = (folder / "serial").read_text(errors="replace").replace("\r", "")
    if "[end]" not in said:
        sys.exit(f"{(folder / 'output').read_text()[-2000:]}\n{said[-2000:]}\nthe machine did not get to its end")
    return said


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
