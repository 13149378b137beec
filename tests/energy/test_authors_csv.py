"""The two files of SkipTrain's authors as they are: a byte order mark, and a column that contradicts another."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from agent.energy.authors_csv import find_row, read_trace_rows
from agent.energy.settings import EnergySettings
from agent.energy.trace import open_trace, published_rows
from agent.errors import ConfigError

HEAD = (
    "Device Name,Inference time MobileNet v2 CPU-F (ms),Inference time {0} (ms),Training time {0} (ms),"
    "Training Time {0} (ms) total,Max Power consumption (W),Energy (Wh),Battery capacity (Wh),"
    "Battery capacity for training,Number of training rounds\r\n"
)
CIFAR = HEAD.format("LeNet") + (
    "Xiaomi 12 Pro (Snapdragon),27,0.692041821,2.076125462,1328.720296,17.7,0.006532875,17.8,1.78,272\r\n"
    "Samsung Galaxy S22 Ultra (Snapdragon),29,0.743304178,2.229912533,1427.144021,15.1,0.005986076,19.4,1.94,324\r\n"
    "OnePlus Nord 2 5G,17,0.435730035,1.307190106,836.6016676,11,0.002556283,17.41,1.741,681\r\n"
    "Xiaomi Poco X3,76,1.947969569,5.843908708,3740.101573,8.2,0.00851912,23.2,2.32,272\r\n"
)
FEMNIST = HEAD.format("CNN") + (
    "Xiaomi 12 Pro (Snapdragon),27,13.01937474,39.05812423,4374.509914,17.7,0.021508007,17.8,17.8,413\r\n"
    "Samsung Galaxy S22 Ultra (Snapdragon),29,13.98377287,41.95131862,4698.547686,15.1,0.019707797,19.4,19.4,492\r\n"
    "OnePlus Nord 2 5G,17,8.197384098,24.5921523,2754.321057,11,0.008415981,17.41,17.41,1034\r\n"
    "Xiaomi Poco X3,76,36.64712891,109.9413867,12313.43531,8.2,0.028047269,23.2,23.2,413\r\n"
)


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    """Write both files as the authors did: the first one begins with a byte order mark."""
    paths = {"cifar10": tmp_path / "cifar.csv", "femnist": tmp_path / "femnist.csv"}
    paths["cifar10"].write_bytes(b"\xef\xbb\xbf" + CIFAR.encode())
    paths["femnist"].write_bytes(FEMNIST.encode())
    return paths


@pytest.mark.parametrize("row", published_rows(), ids=lambda row: f"{row.workload}-{row.device}")
def test_their_files_give_the_same_budgets_and_costs_as_ours(files: dict[str, Path], row: object) -> None:
    """All eight rows: E = t x P / 3600 in watt-hours, and the rounds of the column that counts."""
    ours = next(each for each in published_rows() if each == row)
    theirs = find_row(files[ours.workload], ours.device)
    assert (theirs.cost_uj, theirs.rounds) == (ours.cost_uj, ours.rounds)
    meter = open_trace(EnergySettings("trace", ours.device, ours.workload, file=str(files[ours.workload])))
    assert meter.limit_uj == ours.rounds * ours.cost_uj


@pytest.mark.parametrize(("text", "energy"), [(CIFAR, "LeNet"), (FEMNIST, "CNN")])
def test_energy_is_time_times_power(text: str, energy: str) -> None:
    """The column of energy follows from time and power to the digits that are printed."""
    for line in text.splitlines()[1:]:
        fields = line.split(",")
        assert abs(float(fields[4]) / 1000 * float(fields[5]) / 3600 - float(fields[6])) <= 6e-10, (energy, line)


def test_a_battery_that_contradicts_the_rounds_is_warned_of(
    files: dict[str, Path], caplog: pytest.LogCaptureFixture
) -> None:
    """The FEMNIST file would pay 827 rounds; the published 413 count. The CIFAR-10 file contradicts nothing."""
    with caplog.at_level(logging.WARNING):
        read_trace_rows(files["cifar10"])
        assert not caplog.messages
        read_trace_rows(files["femnist"])
    assert len(caplog.messages) == 4
    assert "would pay for 827 rounds, 'Number of training rounds' says 413: the rounds count" in caplog.messages[0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,b\n1,2\n", ":1: no column 'Device Name'"),
        (CIFAR.replace("0.006532875", "much"), ":2: column 'Energy (Wh)' is 'much', which is no number"),
        (CIFAR.replace("0.00851912", "nan"), ":5: column 'Energy (Wh)' is 'nan', which is no finite number"),
        (CIFAR.replace("0.00851912", "0"), ":5: a round must cost something"),
        (CIFAR.replace(",324", ",3.5"), ":3: a round must cost something"),
        (CIFAR.replace(",324", ",1e999999999"), ":3: column 'Number of training rounds' is '1e999999999', which must"),
        (CIFAR.replace("0.006532875", "1e999999999"), ":2: column 'Energy (Wh)' is '1e999999999', which must be from"),
        (CIFAR.replace("0.006532875", "1e-999999"), ":2: column 'Energy (Wh)' is '1e-999999', which must be from"),
        (CIFAR.replace(",1.78,", ",-1e99999,"), ":2: column 'Battery capacity for training' is '-1e99999', which must"),
        (CIFAR.replace("0.006532875", "1000").replace(",272", ",1e8"), ":2: 100000000 rounds of 1000 Wh are more than"),
        (CIFAR + "x" * 200_000, ":6: field larger than field limit (131072): this is no energy trace"),
    ],
)
def test_a_damaged_file_is_answered_with_its_line(tmp_path: Path, text: str, message: str) -> None:
    """One line: the file, the line, the column, what stands there."""
    path = tmp_path / "traces.csv"
    path.write_text(text)
    with pytest.raises(ConfigError) as error:
        read_trace_rows(path)
    assert f"energy.file {path}{message}" in str(error.value)


@pytest.mark.parametrize(("device", "found"), [("pixel", "no such rows"), ("xiaomi", "2 such rows")])
def test_a_device_must_be_one_of_the_file(files: dict[str, Path], device: str, found: str) -> None:
    """The rows that there are stand in the message."""
    with pytest.raises(ConfigError, match=found) as error:
        find_row(files["cifar10"], device)
    assert "samsung-galaxy-s22-ultra" in str(error.value)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    """As are one that is no text."""
    with pytest.raises(ConfigError, match="cannot be read"):
        read_trace_rows(tmp_path / "none.csv")
    (tmp_path / "bytes.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="this is not text"):
        read_trace_rows(tmp_path / "bytes.csv")
