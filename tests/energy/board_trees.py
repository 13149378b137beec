"""Boards as their kernels and firmware print them: trees to stand for /sys and /proc, and commands for `vcgencmd`.

Values are those of real boards where a source gives them: an ARK soak test (Orin NX), tegrastats lines (Nano), dumps of
jfikar/RPi5-power (PMIC_A) and leukipp/touchkio issue 35 (PMIC_B), a bq27441's sample.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from agent.energy.source import Place

Values = Mapping[str, object]

PMIC_A = {
    "3V7_WL_SW": ("0.00000000", "3.79999600"),
    "3V3_SYS": ("0.06245952", "3.30632200"),
    "1V8_SYS": ("0.16102850", "1.79828900"),
    "DDR_VDD2": ("0.00780744", "1.10292900"),
    "DDR_VDDQ": ("0.00000000", "0.60476130"),
    "1V1_SYS": ("0.17566740", "1.10439400"),
    "0V8_SW": ("0.32791250", "0.80256330"),
    "VDD_CORE": ("10.87674000", "0.89745940"),
    "3V3_DAC": ("0.00036630", "3.30494200"),
    "3V3_ADC": ("0.00042735", "3.30219400"),
    "0V8_AON": ("0.00579975", "0.79736190"),
    "HDMI": ("0.01367520", "5.07056000"),
}
PMIC_B = {
    "3V7_WL_SW": ("0.12199130", "3.60605200"),
    "3V3_SYS": ("0.15224510", "3.31931300"),
    "1V8_SYS": ("0.17273960", "1.79682400"),
    "DDR_VDD2": ("0.11613570", "1.10842400"),
    "DDR_VDDQ": ("0.02941200", "0.60549390"),
    "1V1_SYS": ("0.21763240", "1.10219700"),
    "0V8_SW": ("0.50748360", "0.80146440"),
    "VDD_CORE": ("1.54489000", "0.88725180"),
    "3V3_DAC": ("0.00000000", "3.31501500"),
    "3V3_ADC": ("0.00018315", "3.31684600"),
    "0V8_AON": ("0.00390720", "0.79882700"),
    "HDMI": ("0.01709400", "4.90440000"),
}
_AMPERES = (0, 1, 2, 3, 4, 5, 6, 7, 17, 18, 16, 22)
_VOLTS = (8, 9, 10, 11, 12, 13, 14, 15, 20, 21, 19, 23)
NUMBERS = dict(zip(PMIC_A, zip(_AMPERES, _VOLTS, strict=True), strict=True))
"""The converter's channels of each rail, of its current and of its voltage."""


def place(root: Path) -> Place:
    """Return a place whose /sys, /proc and vcgencmd are below `root`."""
    return Place(sys=root / "sys", proc=root / "proc", vcgencmd=str(root / "vcgencmd"))


def fill(folder: Path, values: Values) -> Path:
    """Write one file a value, each with the newline that kernels end it with."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in values.items():
        (folder / name).write_text(f"{value}\n")
    return folder


def hwmon(sys: Path, driver: str, address: str, number: int, values: Values) -> Path:
    """Make an I2C chip's hwmon: a device, to which class/hwmon, the bus and the driver point; return its folder."""
    device = sys / "devices/platform/i2c" / address
    folder = fill(device / f"hwmon/hwmon{number}", values)
    for link in (sys / f"class/hwmon/hwmon{number}", folder / "device"):
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(folder if link.parent.name == "hwmon" else device)
    for link in (sys / f"bus/i2c/devices/{address}", sys / f"bus/i2c/drivers/{driver}/{address}"):
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(device)
    return folder


def channels(*rails: tuple[str, int, int], shunt_uohm: int) -> dict[str, object]:
    """Return the files of an INA3221: label, mV and mA of each channel, and what comes behind the three."""
    values: dict[str, object] = {"name": "ina3221", "update_interval": 4, "samples": 1}
    for number, (label, bus_mv, current_ma) in enumerate(rails, 1):
        values |= {f"in{number}_label": label, f"in{number}_enable": 1, f"in{number}_input": bus_mv}
        values |= {f"curr{number}_input": current_ma, f"curr{number}_crit": 7784, f"in{number + 3}_input": 30}
        values |= {f"shunt{number}_resistor": shunt_uohm}
    return values | {"in7_label": "sum of shunt voltages", "in7_enable": 1, "in7_input": 40}


def orin_nx(sys: Path) -> Path:
    """Make an Orin NX with JetPack 6 at its peak: 30.346800 W."""
    rails = (("VDD_IN", 5016, 6050), ("VDD_CPU_GPU_CV", 5008, 3312), ("VDD_SOC", 5016, 1016))
    return hwmon(sys, "ina3221", "1-0040", 3, channels(*rails, shunt_uohm=5000))


def agx_orin(sys: Path) -> tuple[Path, Path]:
    """Make an AGX Orin: 19.008 V x 0.8 A + 19 V x 0.4 A + 4.992 V x 1.5 A = 30.2944 W; one rail hangs on the third."""
    rails = (("VDD_GPU_SOC", 19008, 800), ("VDD_CPU_CV", 19000, 400), ("VIN_SYS_5V0", 4992, 1500))
    fed = (("NC", 0, 0), ("VDDQ_VDD2_1V8AO", 4992, 700), ("NC", 0, 0))
    return (
        hwmon(sys, "ina3221", "1-0040", 4, channels(*rails, shunt_uohm=2000)),
        hwmon(sys, "ina3221", "1-0041", 5, channels(*fed, shunt_uohm=2000)),
    )


def thor(sys: Path) -> Path:
    """Make a Thor: three rails of parts, an idle one below zero, and an INA238 without a label: 25.2 W at VIN."""
    rails = (("VDD_GPU", 19600, -20), ("VDD_CPU_SOC_MSS", 19600, 332), ("VIN_SYS_5V0", 5000, 1304))
    hwmon(sys, "ina3221", "2-0040", 1, channels(*rails, shunt_uohm=2000))
    return ina_hat(sys, chip="ina238", power_uw=25_200_000, curr_ma=1260)


def ina_hat(sys: Path, chip: str = "ina219", power_uw: int = 2_792_000, curr_ma: int = 547, **more: object) -> Path:
    """Make a HAT: an INA219 at 0x40 that the board is fed through, 2.792 W."""
    values = {"name": chip, "in0_input": 55, "in1_input": 5104, "curr1_input": curr_ma, "power1_input": power_uw}
    driver = "ina238" if chip in ("ina228", "ina238") else "ina2xx"
    return hwmon(sys, driver, "1-0040", 5, values | {"shunt_resistor": 100000} | more)


def ina228(sys: Path) -> Path:
    """Make a HAT whose chip counts: 123,456.789012 J, more than 32 bits of microjoules."""
    return ina_hat(sys, chip="ina228", energy1_input=123_456_789_012)


def jetson_nano(sys: Path, folder: str = "iio:device0") -> Path:
    """Make a Nano with JetPack 4: 2.545 W."""
    device = sys / "devices/i2c-6/6-0040"
    values: dict[str, object] = {"name": "ina3221x"}
    rails = (("POM_5V_IN", 5032, 506, 2545), ("POM_5V_GPU", 5032, 0, 0), ("POM_5V_CPU", 5024, 109, 549))
    for number, (name, bus_mv, current_ma, power_mw) in enumerate(rails):
        values |= {f"rail_name_{number}": name, f"in_voltage{number}_input": bus_mv}
        values |= {f"in_current{number}_input": current_ma, f"in_power{number}_input": power_mw}
        values |= {f"warn_current_limit_{number}": "32760 ma", f"polling_delay_{number}": "0 ms"}
    fill(device / folder, values)
    for link in (sys / "bus/i2c/devices/6-0040", sys / "bus/i2c/drivers/ina3221x/6-0040"):
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(device)
    return device / folder


def supply(sys: Path, name: str, **values: object) -> Path:
    """Make one power supply."""
    return fill(sys / "class/power_supply" / name, values)


def bat0(sys: Path, **other: object) -> Path:
    """Make a laptop's battery on its own: 83 %, 4.21 W."""
    values: dict[str, object] = {"type": "Battery", "status": "Discharging", "capacity": 83, "present": 1}
    values |= {"energy_now": 15_900_000, "energy_full": 19_240_000, "power_now": 4_210_000, "voltage_now": 7_512_000}
    return supply(sys, "BAT0", **values | other)


def bq27441(sys: Path, **other: object) -> Path:
    """Make a gauge that shows what flows out as negative: 97 %, 4.164 V x 132 mA = 549.648 mW."""
    values: dict[str, object] = {"type": "Battery", "status": "Discharging", "capacity": 97, "voltage_now": 4_164_000}
    values |= {"charge_now": 1_528_000, "charge_full": 1_635_000, "current_now": -132_000}
    return supply(sys, "bq27441-0", **values | other)


def coarse_ups(sys: Path) -> Path:
    """Make a UPS with a MAX17040: percent and voltage, nothing else."""
    return supply(sys, "max17040", type="UPS", capacity=64, voltage_now=3_870_000, status="Discharging")


def stat(proc: Path, user: int, idle: int, iowait: int = 0, steal: int = 0) -> Path:
    """Write /proc/stat of one processor, in ticks."""
    lines = "".join(f"{name} {user} 0 0 {idle} {iowait} 0 0 {steal} 0 0\n" for name in ("cpu ", "cpu0"))
    return fill(proc, {"stat": f"{lines}intr 1 2 3\nctxt 4\nbtime 1700000000"}) / "stat"


def pmic_lines(rails: Mapping[str, tuple[str, str]]) -> str:
    """Return what `vcgencmd pmic_read_adc` prints: all currents, then all voltages, then two that have no current."""
    amperes = [f"{rail + '_A':>12} current({NUMBERS[rail][0]})={value}A" for rail, (value, _) in rails.items()]
    volts = [f"{rail + '_V':>12} volt({NUMBERS[rail][1]})={value}V" for rail, (_, value) in rails.items()]
    rest = ["     EXT5V_V volt(24)=5.06788000V", "      BATT_V volt(25)=3.01110800V"]
    return "\n".join([*amperes, *volts, *rest]) + "\n"


def vcgencmd(root: Path, says: str = "", exit_code: int = 0) -> Path:
    """Write a command that prints `says` and ends with `exit_code`."""
    answer = root / "answer"
    answer.write_text(says)
    return command(
        root,
        f'[ "$1" = pmic_read_adc ] || exit 99\nwhile IFS= read -r a; do printf "%s\\n" "$a"; done '
        f"<{answer}\nexit {exit_code}\n",
    )


def hanging_vcgencmd(root: Path) -> Path:
    """Write a command that never answers."""
    return command(root, "exec tail -f /dev/null\n")


def command(root: Path, script: str) -> Path:
    """Write a command of these lines of shell, in one step: a file that is open for writing cannot be started."""
    path = root / "vcgencmd"
    path.write_text(f"#!/bin/sh\n{script}")
    path.chmod(0o755)
    return path
