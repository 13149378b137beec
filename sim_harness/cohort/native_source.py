"""The C source of one model: its layers as calls of the kernels, with all shapes and places as constants."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from agent.errors import ConfigError
from agent.learning.layers import Conv
from agent.learning.model import ModelSpec, n_params, parameters
from sim_harness.cohort.native_steps import Average, Block, Full, Step, steps_of

_PAIRS = 16
"""Pairs of channels in a tile of AMX."""


@dataclass(slots=True)
class _Writer:
    """Gives out places in the scratch memory, counted in vectors, and collects the C text."""

    lanes: int
    groups: int
    bf16: bool
    amx: bool
    at: int = 64
    """Where the next place begins; before the first one there is room for a row's left border."""
    weights: int = 0
    x: str = ""
    """Where the next step's input stands."""
    gradient: str = "0"
    """Where that input's gradient is wanted; 0: nowhere."""
    declared: list[str] = field(default_factory=list)
    pack: list[str] = field(default_factory=list)
    forward: list[str] = field(default_factory=list)
    backward: list[str] = field(default_factory=list)

    def place(self, vectors: int, border: int = 0, *, shared: bool = False) -> str:
        """Return the address, for lane group `g`, of so many vectors with a border of zeros before and behind."""
        size = vectors + 2 * border + 1
        start = self.at + border
        self.at += size * (1 if shared else self.groups)
        return f"s + {start}" if shared else f"s + {start} + g * {size}"

    def params(self, count: int) -> str:
        """Return the address of the next so many parameters."""
        start = self.weights
        self.weights += count
        return f"w + {start}"

    def half(self, positions: int, border: int) -> str:
        """Return the address of bf16 numbers, LANES a position."""
        where = self.place((positions + 1) // 2, (border + 1) // 2 + 1)
        return f"(uint16_t *)({where})"


def model_source(spec: ModelSpec, *, lanes: int, batch: int, bf16: bool, amx: bool = False) -> str:
    """Return model.c for batches of at most `batch` samples, `lanes` in a vector; ConfigError.

    `amx`: products of bf16 numbers are taken in tiles where a convolution's channels fill them.
    """
    steps = steps_of(spec)
    out = _Writer(lanes, -(-batch // lanes), bf16, bf16 and amx)
    channels, height, width = spec.input_shape
    border = _border(steps[0])
    out.x = out.place(channels * height * (width + border), border)
    out.declared.append(f"static vec *input(vec *s, int g) {{ return {out.x}; }}")
    for number, step in enumerate(steps):
        after = _border(steps[number + 1]) if number + 1 < len(steps) else 0
        if isinstance(step, Block):
            _block(out, number, step, after)
        elif isinstance(step, Average):
            _average(out, number, step, after)
        else:
            _full(out, number, step)
    constants = {
        "CHANNELS": channels, "HEIGHT": height, "WIDTH": width, "INPUT_STRIDE": width + border,
        "CLASSES": spec.classes, "PARAMETERS": n_params(parameters(spec)), "SCRATCH": out.at + 64,
    }  # fmt: skip
    if out.weights != constants["PARAMETERS"]:
        raise ConfigError(f"engine.kind native cannot place the parameters of {spec.name}; use engine.kind sequential")
    return "\n".join(
        [
            '#include "kernels.h"',
            f"enum {{ {', '.join(f'{name} = {value}' for name, value in constants.items())} }};",
            *out.declared,
            f"static vec *scores(vec *s, int g) {{ return {out.x}; }}",
            f"static vec *score_gradient(vec *s, int g) {{ return {out.gradient}; }}",
            "NOINLINE void pack(const float *w, vec *s, int training) {",
            *out.pack,
            "}",
            "NOINLINE void forward(const float *w, vec *s, int g, int training) {",
            *out.forward,
            "}",
            "NOINLINE void backward(float *w, vec *s, int groups, float lr) {",
            *reversed(out.backward),
            "}",
            '#include "round.h"',
            "",
        ]
    )


def _border(step: Step) -> int:
    """Return how many zeros a step wants beside each row of its input."""
    return step.conv.padding if isinstance(step, Block) else 0


def _block(out: _Writer, number: int, step: Block, after: int) -> None:
    """Write a block, which leaves the places of its output and of that one's gradient."""
    conv, name, first = step.conv, f"block{number}", number == 0
    (height, width), (_, rows, columns) = step.sides(), step.after()
    bf16 = out.bf16 and conv.inputs > 1
    unfold = _unfold(conv, first=first) if bf16 and out.amx else 0
    flipped = 0 if first else conv.kernel - 1 - conv.padding
    plane_x, plane_y = step.height * (step.width + conv.padding), height * (width + flipped)
    result = out.place(conv.outputs * rows * (columns + after), after)
    gradient = out.place(conv.outputs * rows * columns)
    members = {
        "x": out.x,
        "y": out.place(conv.outputs * plane_y, flipped),
        "out": result,
        "d_out": gradient,
        "d_x": out.gradient,
        "moments": out.place(2 * max(1, step.groups)),
    }
    if unfold:
        depth, pairs = conv.inputs * unfold, (conv.inputs * unfold + 1) // 2
        members["x_pairs"] = out.place(pairs * plane_x, min(_PAIRS, pairs) * conv.padding)
        members["y_pairs"] = out.place(conv.outputs // 2 * plane_y, min(_PAIRS, conv.outputs // 2) * flipped)
        members["x_half"] = out.half(out.lanes * -(-depth // _PAIRS) * plane_x, out.lanes * (conv.padding + 1))
        members["y_half"] = out.half(conv.outputs * height * (width + 1), 0)
    elif bf16:
        members["x_pairs"] = out.place((conv.inputs + 1) // 2 * plane_x, conv.padding)
        members["y_pairs"] = out.place((conv.outputs + 1) // 2 * plane_y, flipped)
        members["x_half"] = out.half(conv.inputs * plane_x, conv.padding)
        members["y_half"] = out.half(conv.outputs * height * (width + 1), 0)
    size = conv.outputs * (conv.inputs + conv.inputs % 2) * conv.kernel**2
    packed, turned = (f"(float *)({out.place(-(-size // out.lanes), shared=True)})" for _ in range(2))
    weight, bias = out.params(conv.outputs * conv.inputs * conv.kernel**2), out.params(conv.outputs)
    gamma, beta = (out.params(conv.outputs if step.groups else 0) for _ in range(2))
    numbers = (
        *(conv.inputs, conv.outputs, conv.kernel, conv.padding, step.height, step.width),
        *(step.groups, int(step.relu), int(step.pool), int(bf16), int(first), after, unfold),
    )
    out.declared += [
        f"static const Block {name} = {{{', '.join(map(str, numbers))}}};",
        f"static Lanes {name}_lanes(vec *s, int g) {{",
        f"  return (Lanes){{{', '.join(f'.{key} = {value}' for key, value in members.items())}}};",
        "}",
    ]
    pack = "pack_tiles" if unfold else "pack"
    out.pack.append(f"  {pack}_forward({name}, {weight}, {packed});")
    if not first:
        out.pack.append(f"  if (training) {pack}_backward({name}, {weight}, {turned});")
    out.forward.append(f"  block_forward({name}, {name}_lanes(s, g), {packed}, {bias}, {gamma}, {beta}, training);")
    out.backward.append(
        f"  {{\n    Lanes l[{out.groups}];\n    for (int g = 0; g < groups; g++) l[g] = {name}_lanes(s, g);\n"
        f"    block_backward({name}, l, groups, {turned}, lr, {weight}, {bias}, {gamma}, {beta});\n  }}"
    )
    out.x, out.gradient = result, gradient


def _unfold(conv: Conv, *, first: bool) -> int:
    """Return how many columns of the kernel stand among the channels of tiles; 0 where these would not fill them."""
    unfold = conv.kernel if first and conv.inputs * conv.kernel <= 2 * _PAIRS else 1
    summed = (conv.outputs, conv.inputs * unfold)
    whole = conv.outputs % _PAIRS == 0 and (first or conv.inputs % _PAIRS == 0)
    return unfold if whole and all(count <= 2 * _PAIRS or count % (2 * _PAIRS) == 0 for count in summed) else 0


def _average(out: _Writer, number: int, step: Average, after: int) -> None:
    """Write an adaptive pool, which leaves the places of its output and of that one's gradient."""
    if after:
        raise ConfigError(
            "engine.kind native has no kernel for Conv2d behind AdaptiveAvgPool2d; use engine.kind stacked"
        )
    size = math.prod(step.after())
    result, gradient = out.place(size), out.place(size)
    numbers = ", ".join(map(str, (*step.before, *step.to)))
    out.declared.append(f"static const Average average{number} = {{{numbers}}};")
    out.forward.append(f"  average(average{number}, {out.x}, {result});")
    if number:
        out.backward.append(
            f"  for (int g = 0; g < groups; g++) average_backward(average{number}, {gradient}, {out.gradient});"
        )
    out.x, out.gradient = result, gradient


def _full(out: _Writer, number: int, step: Full) -> None:
    """Write a fully connected layer, which leaves the places of its output and of that one's gradient."""
    inputs, outputs, name = step.linear.inputs, step.linear.outputs, f"linear{number}"
    result, gradient = out.place(outputs), out.place(outputs)
    by_sample = f"(float *)({out.place((-(-inputs // out.lanes) + 1) * out.lanes)})"
    weight, bias = out.params(inputs * outputs), out.params(outputs)
    out.declared += [
        f"static const Linear {name} = {{{inputs}, {outputs}, {int(step.relu)}}};",
        f"static Features {name}_features(vec *s, int g) {{",
        f"  return (Features){{{out.x}, {result}, {gradient}, {out.gradient}, {by_sample}}};",
        "}",
    ]
    out.forward.append(f"  linear_forward({name}, {name}_features(s, g), {weight}, {bias});")
    back = f"      linear_backward({name}, f[g], {weight});\n" if number else ""
    out.backward.append(
        f"  {{\n    Features f[{out.groups}];\n    for (int g = 0; g < groups; g++) {{\n"
        f"      f[g] = {name}_features(s, g);\n{back}    }}\n"
        f"    step_linear({name}, f, groups, lr, {weight}, {bias});\n  }}"
    )
    out.x, out.gradient = result, gradient
