"""What is wrong on the device itself: its data, the user's model, its state."""

# ruff: noqa: E501  what a program says stands here in one piece

from __future__ import annotations

from tests.bad_input import arrange
from tests.bad_input.case import ALONE, CONNECTING, GOES_ON, Case

KEPT = "the journal is as it was"
NPZ = ("source: digits", "source: npz\n  path: DIR/data.npz")
FOLDER = ("source: digits", "source: folder\n  path: DIR/data")
AT_START = "said at the start"
BY_TRAINER = "said when the trainer reads the data, at the first training; no joule is charged"


def sensor(source: str, sys: str, more: str = "") -> tuple[str, str]:
    """Return an edit: joules come from there."""
    energy = f"source: {source}, sysfs_root: {sys}, vcgencmd: no-vcgencmd, budget: {{joules: 9}}{more}"
    return "data:", f"energy: {{{energy}}}\ndata:"


DATA = (
    Case(
        "data folder missing",
        "skiptrain-agent: DIR/data cannot be read (No such file or directory); correct data.path",
        65,
        AT_START,
        (FOLDER,),
    ),
    Case(
        "npz missing",
        "skiptrain-agent: DIR/data.npz cannot be read (No such file or directory); correct data.path",
        65,
        AT_START,
        (NPZ,),
    ),
    Case(
        "npz cut off",
        "skiptrain-agent: DIR/data.npz is not a sound .npz of plain arrays (…); save it again with np.savez",
        65,
        AT_START,
        (NPZ,),
        arrange.truncated_npz,
    ),
    Case(
        "npz with pickled objects",
        "skiptrain-agent: DIR/data.npz is not a sound .npz of plain arrays (…); save it again with np.savez",
        65,
        AT_START,
        (NPZ,),
        arrange.pickled_npz,
    ),
    Case(
        "npz without labels",
        "skiptrain-agent: DIR/data.npz lacks x or y (it holds x); save it with np.savez(path, x=..., y=...)",
        65,
        AT_START,
        (NPZ,),
        arrange.unlabelled_npz,
    ),
    Case(
        "test set missing",
        "skiptrain-agent: DIR/test.npz cannot be read (No such file or directory); correct data.test_path",
        65,
        AT_START,
        (("source: digits", "source: digits\n  test_source: npz\n  test_path: DIR/test.npz"),),
    ),
    Case(
        "a folder that is no class of the fleet",
        "skiptrain-agent: DIR/data has folders that are no class of data.class_names: class9; name the folders after the classes",
        65,
        AT_START,
        (("source: digits", f"{FOLDER[1]}\n  class_names: [{', '.join(f'class{i}' for i in range(9))}]"),),
        arrange.ten_classes,
    ),
    Case(
        "samples of another size than the model's",
        "skiptrain-agent: DIR/data.npz: samples of shape [6, 9, 9] don't tell how they become inputs of shape (1, 8, 8); correct model.input_shape, or set data.layout to nchw, nhwc or nhw",
        65,
        AT_START,
        (NPZ,),
        arrange.larger_npz,
    ),
    Case(
        "labels beyond the model's classes",
        "skiptrain-agent: DIR/data.npz: labels go from 0 to 11, but the model has 10 classes, 0 to 9; correct model.classes, or the labels",
        65,
        AT_START,
        (NPZ,),
        arrange.too_many_labels,
    ),
    Case(
        "more class folders than the model has classes",
        "skiptrain-agent: DIR/data names 10 classes, but the model has 9; correct model.classes, or set data.class_names to all classes of the fleet, the same list on every node",
        65,
        AT_START,
        (FOLDER, ("classes: 10", "classes: 9")),
        arrange.ten_classes,
    ),
    Case(
        "fewer class folders than the model has classes",
        "skiptrain-agent: DIR/data names 10 classes, but the model has 11; correct model.classes, or set data.class_names to all classes of the fleet, the same list on every node",
        65,
        AT_START,
        (FOLDER, ("classes: 10", "classes: 11")),
        arrange.ten_classes,
    ),
    Case(
        "data of another shape than the model",
        "skiptrain-agent: digits: 1797 labels for samples of shape [1797, 1, 8, 8], but the model takes [n, 1, 9, 9]; correct model.input_shape, or the data",
        65,
        AT_START,
        (("[1, 8, 8]", "[1, 9, 9]"),),
    ),
    Case(
        "no class folder",
        "skiptrain-agent: DIR/data has no class folder; name the folders after the classes",
        65,
        AT_START,
        (FOLDER,),
        arrange.no_class,
    ),
    Case(
        "empty class folder",
        "skiptrain-agent: DIR/data/class3 holds no image; add some, or remove the folder and set data.class_names",
        65,
        AT_START,
        (FOLDER,),
        arrange.empty_class,
    ),
    Case(
        "folder that cannot be read",
        "skiptrain-agent: DIR/data cannot be read (Too many levels of symbolic links); correct data.path",
        65,
        AT_START,
        (FOLDER,),
        arrange.looping_link,
    ),
    Case(
        "file in the place of the folder",
        "skiptrain-agent: DIR/file/data cannot be read (Not a directory); correct data.path",
        65,
        AT_START,
        (("source: digits", "source: folder\n  path: DIR/file/data"),),
        arrange.a_file,
    ),
    Case(
        "idx files missing",
        "skiptrain-agent: DIR/train-images-idx3-ubyte (or .gz) is missing; put it there, or correct data.path",
        65,
        AT_START,
        (("source: digits", "source: idx\n  path: DIR"),),
    ),
    Case(
        "CIFAR-10 missing",
        "skiptrain-agent: DIR/data_batch_1.bin is missing; unpack cifar-10-binary.tar.gz "
        "(https://www.cs.toronto.edu/~kriz/cifar.html) and correct data.path",
        65,
        AT_START,
        (("source: digits", "source: cifar10\n  path: DIR"),),
    ),
    Case(
        "a text file named .jpg",
        "skiptrain-agent: DIR/data/class3/2.jpg cannot be read as an image (…); replace or remove it",
        65,
        BY_TRAINER,
        (ALONE, FOLDER),
        arrange.text_as_image,
    ),
    Case(
        "image cut off",
        "skiptrain-agent: DIR/data/class3/2.jpg cannot be read as an image (…); replace or remove it",
        65,
        BY_TRAINER,
        (ALONE, FOLDER),
        arrange.truncated_image,
    ),
    Case(
        "image of 400 million pixels",
        "skiptrain-agent: DIR/data/class3/2.png cannot be read as an image (…); replace or remove it",
        65,
        BY_TRAINER,
        (ALONE, FOLDER),
        arrange.image_bomb,
    ),
)

MODEL = (
    Case(
        "model factory that is not there",
        "skiptrain-agent: model.name mine:net: no module 'mine'; install it, or put its folder on PYTHONPATH",
        78,
        AT_START,
        (("input_shape", "name: mine:net\n  input_shape"),),
    ),
    Case(
        "no such function in it",
        "skiptrain-agent: model.name mine:net: mine (DIR/mine.py) has no 'net'",
        78,
        AT_START,
        (("input_shape", "name: mine:net\n  input_shape"),),
        arrange.broken_model,
    ),
    Case(
        "model factory that raises",
        "skiptrain-agent: model.name mine:raises: mine:raises((1, 8, 8), 10) failed: RuntimeError: …",
        70,
        AT_START,
        (("input_shape", "name: mine:raises\n  input_shape"),),
        arrange.broken_model,
    ),
    Case(
        "model factory that returns no model",
        "skiptrain-agent: model.name mine:text: mine:text returned a str; it must return a torch.nn.Module",
        70,
        AT_START,
        (("input_shape", "name: mine:text\n  input_shape"),),
        arrange.broken_model,
    ),
    Case(
        "model with other scores than classes",
        "skiptrain-agent: model.name mine:narrow: mine:narrow must return scores of shape [samples, 10]; for 2 samples it returned [2, 3]",
        70,
        AT_START,
        (("input_shape", "name: mine:narrow\n  input_shape"),),
        arrange.broken_model,
    ),
    Case(
        "torch missing",
        "skiptrain-agent: torch cannot be imported (no build of torch for this board); install the extra `torch`, or the build made for this board",
        70,
        "said at the first training; no joule is charged",
        (ALONE,),
        arrange.no_torch,
    ),
)

ENERGY = (
    Case(
        "no sensor of energy on this board",
        "skiptrain-agent: no sensor of energy below DIR/sys, and no no-vcgencmd that answers; enable one (docs/energy.md), or budget by an estimate: energy.source: estimate",
        72,
        AT_START,
        (sensor("auto", "DIR/sys"),),
    ),
    Case(
        "the sensor that was named is not there",
        "skiptrain-agent: no RAPL zones below DIR/sys/…",
        72,
        AT_START,
        (sensor("rapl", "DIR/sys"),),
    ),
    Case(
        "a counter of energy that stands still",
        "skiptrain-agent: package-0: the energy counter does not move (1.0 s); check the driver, or leave it out in energy.rails",
        72,
        AT_START,
        (sensor("rapl", "DIR/sys"),),
        arrange.still_counters,
    ),
    Case(
        "rails that are not there",
        "skiptrain-agent: …energy.rails…",
        72,
        AT_START,
        (sensor("rapl", "DIR/sys", ", rails: [VDD_IN]"),),
        arrange.still_counters,
    ),
    Case(
        "an estimate without watts",
        "skiptrain-agent: …energy.idle_w…",
        72,
        AT_START,
        (sensor("estimate", "/sys"),),
    ),
    Case(
        "a share of a battery that nobody knows",
        "skiptrain-agent: energy.budget.battery_share: no gauge tells how much the battery holds; set energy.budget.battery_wh",
        78,
        AT_START,
        (("data:", "energy: {sysfs_root: DIR/sys, budget: {battery_share: 0.1}}\ndata:"),),
    ),
    Case(
        "a recording that is none",
        "skiptrain-agent: energy.file DIR/file:1: this is no recording of skiptrain-agent energy record",
        78,
        AT_START,
        (("data:", "energy: {source: recording, file: DIR/file, budget: {joules: 9}}\ndata:"),),
        arrange.a_file,
    ),
)

STATE = (
    Case(
        "state folder in use",
        "skiptrain-agent: /var/lib/skiptrain: in use by another agent; give each agent a node.state_dir of its own",
        74,
        KEPT,
        arrange=arrange.state_in_use,
    ),
    Case(
        "state folder cannot be made",
        "skiptrain-agent: DIR/file/state: cannot be opened for writing: Not a directory; check node.state_dir",
        74,
        KEPT,
        (("DIR/state", "DIR/file/state"),),
        arrange.a_file,
    ),
    Case(
        "runtime folder cannot be made",
        "skiptrain-agent: node.runtime_dir DIR/file/run: cannot be made: Not a directory",
        78,
        KEPT,
        (("DIR/run", "DIR/file/run"),),
        arrange.a_file,
    ),
    Case(
        "both generations of the state damaged",
        "skiptrain-agent: /var/lib/skiptrain: state.0 and state.1: nothing whole is left, so that what this device has spent is unknown; restore a backup, or move the folder away to begin with a new ledger",
        74,
        KEPT,
        arrange=arrange.damaged_states,
    ),
    Case(
        "newest generation of the state damaged",
        "/var/lib/skiptrain: the newest state was damaged; went back to generation 1",
        GOES_ON,
        "what it may have reserved is charged",
        arrange=arrange.damaged_state,
        forfeited_uj=23_518_350,
        until=CONNECTING,
    ),
    Case(
        "state of a newer release",
        "skiptrain-agent: /var/lib/skiptrain/state.…: written by a newer release (format 9); update this one, or move it away",
        74,
        KEPT,
        arrange=arrange.newer_state,
    ),
    Case(
        "model in the journal of another size",
        "skiptrain-agent: /var/lib/skiptrain: the model there has another size; give the new run a new run.id",
        74,
        KEPT,
        arrange=arrange.model_of_another_shape,
    ),
)
