"""How each operator of a graph hands on the parts of its values; see `flyweight.structure.dependencies`.

Every entry of a value has a number. Entries of one class can only be removed together. An entry of class
`FIXED` stays whatever happens; along an axis where nothing varies, nothing is removed.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Literal, final

import torch
from jaxtyping import Int
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves, tree_map

from flyweight.channels.classes import FIXED, Classes, once
from flyweight.channels.moves import MOVES, PADS, SAME, SIZES, is_float, moved, operation, pads_with_zeros
from flyweight.channels.rules import channel_axis
from flyweight.measure.graph import ATEN, BATCH_NORMS, module_of
from flyweight.structure import operators
from flyweight.structure.operators import args_of, options_of
from flyweight.tensors.encoded import EncodedLayer

Numbers = Int[Tensor, " ..."]
Role = Literal["writes", "reads", "follows"]
_SPATIAL_AXES: Mapping[type[nn.Module], int] = {nn.Linear: 0, nn.Conv1d: 1, nn.Conv2d: 2}


@final
class Tracer(fx.Interpreter):
    """Runs the graph once, and with each value its numbers: int64 of the value's shape.

    Attributes:
        classes: Of all numbers.
        values: Node to the numbers of its value; None in place of what is no float tensor.
        axes: (tensor, axis) to the numbers along it, of parameters and buffers of which something may go.
        roles: Of those of weights, whether parts are written there, or read.
    """

    def __init__(self, graph: fx.GraphModule) -> None:
        super().__init__(graph)
        tensors = [
            *graph.named_parameters(remove_duplicate=False),
            *graph.named_buffers(remove_duplicate=False),
        ]
        self._names: dict[int, str] = {}
        for name, tensor in tensors:
            self._names.setdefault(id(tensor), name)
        self._rules = self._table()
        self._weighted = {
            *operators.LINEAR,
            *operators.CONVOLUTIONS,
            *operators.TRANSPOSED,
            *operators.CHANNEL_NORMS,
            ATEN.group_norm,
            ATEN.embedding,
        }
        self.classes = Classes()
        self.values: dict[fx.Node, Any] = {}
        self.axes: dict[tuple[str, int], Tensor] = {}
        self.roles: dict[tuple[str, int], Role] = {}

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        self.values[n] = self._follow(n, result)
        return result

    def square(self) -> None:
        """Join parts until of each value what is left is as long everywhere along each axis."""
        changed = True
        while changed:
            changed = False
            for numbers in tree_leaves(list(self.values.values())):
                axes = self._varying(numbers) if isinstance(numbers, Tensor) else []
                if len(axes) > 1:
                    kept = max(axes, key=lambda axis: numbers.shape[axis])
                    self.classes.same_along(numbers, [axis for axis in axes if axis != kept])
                    changed = True

    def _follow(self, node: fx.Node, result: Any) -> Any:
        if node.op == "placeholder":
            return _all_fixed(result)
        if node.op == "get_attr":
            return self._tensor(node, result)
        if node.op == "call_module":
            return self._module(node, result)
        if node.op == "output":
            for source in node.all_input_nodes:
                self._fix(self.values[source], "the model puts it out")
            return None
        name = operation(node)
        rule = self._rules.get(name)
        if rule is None and (name in operators.POINTWISE | SAME | {ATEN.prelu} or _is_pointwise(node)):
            rule = self._pointwise
        return (rule or self._unknown)(node, result)

    def _table(self) -> Mapping[Any, Callable[[fx.Node, Any], Any]]:
        return {
            **dict.fromkeys(MOVES, self._moved),
            **dict.fromkeys(operators.LOOKUPS, self._looked_up),
            **dict.fromkeys(PADS, self._padded),
            **dict.fromkeys(operators.SPATIAL, self._spatial),
            **dict.fromkeys(operators.REDUCTIONS, self._reduced),
            **dict.fromkeys(operators.SOFTMAX, self._softmax),
            **dict.fromkeys(operators.LAYER_NORMS, self._layer_norm),
            **dict.fromkeys(operators.CHANNEL_NORMS, self._channel_norm),
            **dict.fromkeys(operators.LINEAR, self._linear),
            **dict.fromkeys(operators.CONVOLUTIONS, self._convolution),
            **dict.fromkeys(operators.TRANSPOSED, self._transposed_convolution),
            **dict.fromkeys(operators.PRODUCTS, self._matmul),
            **dict.fromkeys(SIZES, self._nothing),
            ATEN.index: self._indexed,
            ATEN.group_norm: self._group_norm,
            ATEN.embedding: self._embedding,
            ATEN.scaled_dot_product_attention: self._attention,
            ATEN.glu: self._glu,
            operator.getitem: self._item,
        }

    def _of(self, value: object) -> Any:
        """The numbers of an argument; None where it is no float tensor."""
        return self.values.get(value) if isinstance(value, fx.Node) else None

    def _value(self, node: fx.Node, at: int, name: str) -> Any:
        """The numbers of an argument by position or name."""
        return self._of(args_of(node)[at] if at < len(args_of(node)) else options_of(node).get(name))

    def _fix(self, numbers: Any, reason: str) -> None:
        for leaf in tree_leaves(numbers):
            if isinstance(leaf, Tensor):
                self.classes.fix(leaf, reason)

    def _unknown(self, node: fx.Node, result: Any) -> Any:
        for source in node.all_input_nodes:
            self._fix(self.values[source], f"operator {_shown(node)} is not understood")
        return _all_fixed(result)

    def _nothing(self, node: fx.Node, result: Any) -> Any:
        return _all_fixed(result)

    def _varying(self, numbers: Numbers) -> list[int]:
        """The axes along which the classes of numbers differ."""
        found = self.classes.of(once(numbers))
        sizes = enumerate(found.shape)
        return [a for a, size in sizes if size > 1 and bool((found != found.narrow(a, 0, 1)).any())]

    def _pinned(self, numbers: Numbers, axes: Collection[int], reason: str) -> Numbers:
        """Numbers of which nothing goes along some axes."""
        varying = self._varying(numbers)
        pinned = [axis for axis in varying if axis in axes]
        if pinned and len(pinned) == len(varying):
            self.classes.fix(numbers, reason)
        elif pinned:
            return self.classes.same_along(numbers, pinned).expand(numbers.shape)
        return numbers

    def _vector(self, numbers: Numbers, axis: int) -> Numbers:
        """(size,), the numbers along the only axis along which they may vary."""
        others = [a for a in range(numbers.dim()) if a != axis % numbers.dim()]
        return numbers.permute(*others, axis).reshape(-1, numbers.shape[axis])[0]

    def _along(
        self, tensor: Tensor, axis: int, numbers: Numbers | None = None, *, role: Role = "follows"
    ) -> Numbers:
        """The numbers along an axis of a parameter or buffer, joined with others."""
        key = self._names[id(tensor)], axis % tensor.dim()
        if key not in self.axes:
            self.axes[key] = self.classes.fresh(tensor.shape[axis])
        if role != "follows":
            self.roles[key] = role
        if numbers is None:
            return self.axes[key]
        self._join_or_fix(self.axes[key], numbers)
        return self.axes[key]

    def _join_or_fix(self, own: Numbers, others: Numbers) -> None:
        fixed = self.classes.of(others) == FIXED
        if bool(fixed.any()):
            self.classes.fix(own[fixed], "; ".join(self.classes.reasons(others[fixed])))
        self.classes.join(own[~fixed], others[~fixed])

    def _tensor(self, node: fx.Node, result: Any) -> Any:
        """Numbers of the channels of a parameter or buffer: its only axis longer than 1, or its last.

        What multiplies with it as a weight knows its axes better.
        """
        axis = channel_axis(result) if is_float(result) and id(result) in self._names else None
        if axis is None or all(operation(user) in self._weighted for user in node.users):
            return _all_fixed(result)
        return _spread(self._along(result, axis), axis, result.shape)

    def _module(self, node: fx.Node, result: Any) -> Any:
        module = module_of(self.module, node)  # type: ignore[arg-type]  # it is the graph
        read = self._of(args_of(node)[0]) if args_of(node) else None
        if isinstance(module, nn.Embedding):
            return _spread(self._along(module.weight, 1, role="writes"), -1, result.shape)
        if read is None or isinstance(module, EncodedLayer):
            return self._unknown(node, result)
        if isinstance(module, BATCH_NORMS):
            own = (module.weight, module.bias, module.running_mean, module.running_var)
            return self._by_channel(node, read, own)
        if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d) and type(module) in _SPATIAL_AXES:
            groups: int = 1 if isinstance(module, nn.Linear) else module.groups
            axis = -1 - _SPATIAL_AXES[type(module)]
            return self._multiplied(node, result, read, (module.weight, 0, 1), module.bias, axis, groups)
        return self._unknown(node, result)

    def _argument(self, node: fx.Node, at: int | None, name: str) -> Tensor | None:
        """A parameter or buffer that an operator is given; None where it is given none, or something else."""
        if at is None:
            return None
        given = args_of(node)[at] if at < len(args_of(node)) else options_of(node).get(name)
        value = self.env.get(given) if isinstance(given, fx.Node) and given.op == "get_attr" else None
        return value if isinstance(value, Tensor) and id(value) in self._names else None

    def _linear(self, node: fx.Node, result: Any) -> Any:
        weight_at, bias_at, rows, columns = operators.LINEAR[operation(node)]
        read = self._of(args_of(node)[1 if weight_at == 2 else 0])
        weight, bias = self._argument(node, weight_at, "weight"), self._argument(node, bias_at, "bias")
        if weight is None or read is None or set(node.kwargs) - {"bias"}:
            return self._unknown(node, result)
        return self._multiplied(node, result, read, (weight, rows, columns), bias, -1, 1)

    def _convolution(self, node: fx.Node, result: Any) -> Any:
        weight, bias = self._argument(node, 1, "weight"), self._argument(node, 2, "bias")
        read = self._of(args_of(node)[0])
        if weight is None or read is None:
            return self._unknown(node, result)
        groups = read.shape[1] // weight.shape[1]
        axis = -1 - operators.CONVOLUTIONS[operation(node)]
        return self._multiplied(node, result, read, (weight, 0, 1), bias, axis, groups)

    def _transposed_convolution(self, node: fx.Node, result: Any) -> Any:
        weight, bias = self._argument(node, 1, "weight"), self._argument(node, 2, "bias")
        read = self._of(args_of(node)[0])
        if weight is None or read is None or result.shape[1] != weight.shape[1]:  # it has groups
            return self._unknown(node, result)
        axis = -1 - operators.TRANSPOSED[operation(node)]
        return self._multiplied(node, result, read, (weight, 1, 0), bias, axis, 1)

    def _multiplied(
        self,
        node: fx.Node,
        result: Tensor,
        read: Numbers,
        weight: tuple[Tensor, int, int],
        bias: Tensor | None,
        axis: int,
        groups: int,
    ) -> Any:
        """A weight, with the axes of its rows and columns, multiplied with channels on an axis of a value."""
        tensor, rows_axis, columns_axis = weight
        rows = self._along(tensor, rows_axis, role="writes")
        if any(a != axis % read.dim() for a in self._varying(read)):
            reason = f"{_shown(node)} shares its weight between parts"
            read = self._pinned(read, [axis % read.dim()], reason)
            self.classes.fix(rows, reason)
            self.classes.fix(self._along(tensor, columns_axis, role="reads"), reason)
            return read.narrow(axis, 0, 1).expand(result.shape)
        channels = self._vector(read, axis)
        if groups == 1:
            self._along(tensor, columns_axis, channels, role="reads")
        elif tensor.shape[columns_axis] == 1:  # each group reads one channel
            self._join_or_fix(rows, channels.repeat_interleave(len(rows) // groups))
        else:
            offsets = self.classes.same_along(channels.reshape(groups, -1), [0])[0]
            self._along(tensor, columns_axis, self.classes.of(offsets), role="reads")
            self.classes.same_along(rows.reshape(groups, -1), [0])
        if bias is not None:
            self._along(bias, 0, rows)
        return _spread(rows, axis, result.shape)

    def _by_channel(self, node: fx.Node, read: Numbers, tensors: Sequence[Tensor | None]) -> Numbers:
        """A norm of the channels on axis 1, and all that has one number for each of them."""
        read = self._pinned(read, [a for a in range(read.dim()) if a != 1], f"{_shown(node)} needs all of it")
        channels = self._vector(read, 1)
        for tensor in tensors:
            if tensor is not None:
                self._along(tensor, 0, channels)
        return read

    def _channel_norm(self, node: fx.Node, result: Any) -> Any:
        read = self._of(args_of(node)[0])
        if read is None:
            return self._unknown(node, result)
        positions = operators.CHANNEL_NORMS[operation(node)]
        return self._by_channel(node, read, [self._argument(node, at, "") for at in positions])

    def _group_norm(self, node: fx.Node, result: Any) -> Any:
        read, groups = self._of(args_of(node)[0]), args_of(node)[1]
        if read is None or not isinstance(groups, int):
            return self._unknown(node, result)
        if read.shape[1] != groups:  # groups of several channels must stay of one size
            channels = once(read).expand(-1, read.shape[1], *([-1] * (read.dim() - 2)))
            by_group = channels.reshape(len(channels), groups, -1, *channels.shape[2:])
            self.classes.same_along(by_group, [1])
        affine = [self._argument(node, at, name) for at, name in ((2, "weight"), (3, "bias"))]
        return self._by_channel(node, read, affine)

    def _layer_norm(self, node: fx.Node, result: Any) -> Any:
        read, shape = self._of(args_of(node)[0]), node.args[1]
        if read is None or not isinstance(shape, list | tuple) or len(shape) != 1:
            return self._unknown(node, result)
        affine = [
            self._of(args_of(node)[at])
            for at in operators.LAYER_NORMS[operation(node)]
            if at < len(args_of(node))
        ]
        for numbers in affine:
            if numbers is not None:
                self._settle(numbers, [read], result.dim(), _shown(node))
        return self._together([read, *(n for n in affine if n is not None)], result.shape, _shown(node))

    def _pointwise(self, node: fx.Node, result: Any) -> Any:
        if not is_float(result):  # a comparison
            return self._unknown(node, result)
        sources = [a for a in tree_leaves((args_of(node), dict(node.kwargs))) if isinstance(a, fx.Node)]
        read = [(source, self._of(source)) for source in sources]
        read = [(source, numbers) for source, numbers in read if isinstance(numbers, Tensor)]
        if operation(node) is ATEN.prelu and len(read) == 2 and read[1][1].numel() > 1:
            return self._by_channel(node, read[0][1], [self._argument(node, 1, "weight")])
        for source, numbers in read:
            if source.op == "get_attr":
                others = [own for other, own in read if other is not source]
                self._settle(numbers, others, result.dim(), _shown(node))
        return self._together([numbers for _, numbers in read], result.shape, _shown(node))

    def _settle(self, own: Numbers, others: Sequence[Numbers], axes: int, who: str) -> None:
        """A parameter that is the same for all parts of a value, such as heads, stays."""
        mine = {axis + axes - own.dim() for axis in self._varying(own)}
        for numbers in others:
            theirs = {axis + axes - numbers.dim() for axis in self._varying(numbers)}
            if theirs - mine and mine:
                self.classes.fix(own, f"{who} computes all parts with it")

    def _together(self, several: Sequence[Numbers], shape: torch.Size, who: str) -> Numbers:
        """What is computed entry by entry from several values, broadcast."""
        wide = [n.reshape((1,) * (len(shape) - n.dim()) + tuple(n.shape)) for n in several]
        settled = False
        while not settled:
            settled = True
            for index, one in enumerate(wide):
                stays = [a for a in self._varying(one) if self._stays_along(a, wide, index)]
                if stays:
                    wide[index] = self._pinned(one, stays, f"{who} computes it with what stays")
                    settled = False
        result = torch.zeros((1,) * len(shape), dtype=torch.int64)
        for numbers in wide:
            if self.classes.free(numbers):
                result = self.classes.join(result, numbers) if self.classes.free(result) else numbers
        return result.expand(shape)

    def _stays_along(self, axis: int, wide: Sequence[Numbers], but: int) -> bool:
        """Whether some other value has all of an axis, and none of it can go."""
        others = (n for i, n in enumerate(wide) if i != but and n.shape[axis] > 1)
        return any(not self.classes.free(n) for n in others)

    def _moved(self, node: fx.Node, result: Any) -> Any:
        if not all(is_float(leaf) for leaf in tree_leaves(result)):
            return self._unknown(node, result)
        numbers = moved(node, self._numbers_or_value)
        if operation(node) in operators.CONCATENATIONS:  # what is put side by side has the same channels
            axis = int(args_of(node)[1]) % result.dim() if len(args_of(node)) > 1 else 0
            if any(a != axis for a in self._varying(numbers)):
                return self.classes.same_along(numbers, [axis]).expand(result.shape)
        return numbers

    def _numbers_or_value(self, node: fx.Node) -> Any:
        numbers = self.values[node]
        if not isinstance(numbers, Tensor):
            return self.env[node] if numbers is None else numbers
        strides = self.env[node].stride()
        if 0 in strides:
            return numbers
        # laid out as the value is, so that it can be viewed as that is
        return torch.empty_strided(numbers.shape, strides, dtype=torch.int64).copy_(numbers)

    def _looked_up(self, node: fx.Node, result: Any) -> Any:
        """By constants along an axis, which must stay as it is."""
        source, *given = args_of(node)
        read = self._of(source)
        if read is None or not all(is_float(leaf) for leaf in tree_leaves(result)):
            return self._unknown(node, result)
        if operation(node) is ATEN.roll:
            axes = given[1] if len(given) > 1 else range(read.dim())
        else:
            axes = [given[0]] if given else [0]
        along = [int(axis) % read.dim() for axis in axes]
        self.values[args_of(node)[0]] = self._pinned(read, along, f"{_shown(node)} looks it up")
        return moved(node, self._numbers_or_value)

    def _indexed(self, node: fx.Node, result: Any) -> Any:
        read, indices = self._of(args_of(node)[0]), node.args[1]
        if read is None or not isinstance(indices, list | tuple):
            return self._unknown(node, result)
        along = [a for a, index in enumerate(indices) if index is not None]
        self.values[args_of(node)[0]] = self._pinned(read, along, f"{_shown(node)} looks it up")
        return moved(node, self._numbers_or_value)

    def _padded(self, node: fx.Node, result: Any) -> Any:
        """Channels of zeros that are put beside others have numbers of their own."""
        read = self._of(args_of(node)[0])
        if read is None:
            return self._unknown(node, result)
        inside = moved(node, lambda n: torch.ones_like(read) if n is args_of(node)[0] else self.env[n])
        numbers = moved(node, self._numbers_or_value)
        amounts = args_of(node)[1]
        padded = sorted({read.dim() - 1 - i // 2 for i, size in enumerate(amounts) if size})
        varying = self._varying(read)
        axes = [axis for axis in padded if axis in varying]
        if not axes:
            others = [axis for axis in range(read.dim()) if axis not in padded]
            kept = numbers
            for axis in padded:
                kept = kept.amax(axis, keepdim=True)
            return kept.expand(result.shape) if others else _all_fixed(result)
        if len(axes) > 1 or len(padded) > 1 or not pads_with_zeros(node):
            return self._unknown(node, result)
        (axis,) = axes
        own = _spread(self.classes.fresh(result.shape[axis]), axis - result.dim(), result.shape)
        return torch.where(inside == 1, numbers, own)

    def _item(self, node: fx.Node, result: Any) -> Any:
        several, index = self._of(args_of(node)[0]), node.args[1]
        if isinstance(several, tuple | list) and isinstance(index, int):
            return several[index]
        return self._unknown(node, result)

    def _spatial(self, node: fx.Node, result: Any) -> Any:
        read = self._of(args_of(node)[0])
        if read is None or not is_float(result):
            return self._unknown(node, result)
        axes = [read.dim() - 1 - i for i in range(operators.SPATIAL[operation(node)])]
        read = self._pinned(read, axes, f"{_shown(node)} needs all of it")
        for axis in axes:
            read = read.narrow(axis, 0, 1)
        return read.expand(result.shape)

    def _reduced(self, node: fx.Node, result: Any) -> Any:
        read = self._of(args_of(node)[0])
        if read is None or not is_float(result):
            return self._unknown(node, result)
        given = args_of(node)[1] if len(args_of(node)) > 1 else options_of(node).get("dim")
        several = given if isinstance(given, list | tuple) else [given] if isinstance(given, int) else []
        axes = [int(a) % read.dim() for a in several] or list(range(read.dim()))
        varying = self._varying(read)
        if any(a in axes for a in varying) and operation(node) not in operators.SUMS:
            read = self._pinned(read, axes, f"{_shown(node)} needs all of it")
        elif all(a in axes for a in varying):
            return _all_fixed(result)
        else:
            read = self._pinned(read, axes, "")
        kept = read
        for axis in axes:
            kept = kept.narrow(axis, 0, 1)
        return (kept if kept.dim() == result.dim() else kept.squeeze(tuple(axes))).expand(result.shape)

    def _softmax(self, node: fx.Node, result: Any) -> Any:
        read, axis = self._of(args_of(node)[0]), node.args[1]
        if read is None or not isinstance(axis, int):
            return self._unknown(node, result)
        return self._pinned(read, [axis % read.dim()], f"{_shown(node)} needs all of it")

    def _glu(self, node: fx.Node, result: Any) -> Any:
        read, axis = self._of(args_of(node)[0]), node.args[1] if len(args_of(node)) > 1 else -1
        if read is None or not isinstance(axis, int):
            return self._unknown(node, result)
        return self._together(read.chunk(2, axis), result.shape, _shown(node))

    def _embedding(self, node: fx.Node, result: Any) -> Any:
        weight = self._argument(node, 0, "weight")
        if weight is None:
            return self._unknown(node, result)
        return _spread(self._along(weight, 1, role="writes"), -1, result.shape)

    def _matmul(self, node: fx.Node, result: Any) -> Any:
        left, right = (self._of(operand) for operand in args_of(node)[:2])
        weight = self._argument(node, 1, "")
        if weight is not None and weight.dim() == 2 and left is not None:
            return self._multiplied(node, result, left, (weight, 1, 0), None, -1, 1)
        if left is None or right is None or left.dim() < 2 or right.dim() < 2:
            return self._unknown(node, result)
        return self._product(left, right, result.shape, _shown(node))

    def _product(self, left: Numbers, right: Numbers, shape: torch.Size, who: str) -> Numbers:
        """Rows of one value times columns of the other, in batches."""
        inner, outer = left.dim() - 1, right.dim() - 2
        if len(self._varying(left)) > 1:
            left = self._pinned(left, [inner], who)
        if len(self._varying(right)) > 1:
            right = self._pinned(right, [outer], who)
        over_left, over_right = inner in self._varying(left), outer in self._varying(right)
        if over_left and over_right:
            self.classes.join(self._vector(left, inner), self._vector(right, outer))
        elif over_left or over_right:
            self.classes.fix(left if over_left else right, f"{who} multiplies it with what stays")
        rows = torch.zeros_like(left[..., :1]) if over_left else left.narrow(inner, 0, 1)
        columns = torch.zeros_like(right[..., :1, :]) if over_right else right.narrow(outer, 0, 1)
        return self._together([rows, columns], shape, who)

    def _attention(self, node: fx.Node, result: Any) -> Any:
        query, key, value = (self._of(operand) for operand in args_of(node)[:3])
        if query is None or key is None or value is None:
            return self._unknown(node, result)
        who = _shown(node)
        if query.dim() > 2 and key.shape[-3] not in {1, query.shape[-3]}:  # grouped queries
            repeats = query.shape[-3] // key.shape[-3]
            key, value = (n.repeat_interleave(repeats, -3) for n in (key, value))
        scores = torch.Size([*query.shape[:-1], key.shape[-2]])
        weights = self._product(query, key.mT, scores, who)
        mask = self._value(node, 3, "attn_mask")
        if mask is not None:
            weights = self._together([weights, mask], scores, who)
        weights = self._pinned(weights, [weights.dim() - 1], who)
        return self._product(weights, value, result.shape, who)


def _is_pointwise(node: fx.Node) -> bool:
    return isinstance(node.target, torch._ops.OpOverload) and torch.Tag.pointwise in node.target.tags


def _shown(node: fx.Node) -> str:
    return f"{operation(node)}".removeprefix("aten.") if node.op == "call_function" else f"{node.target}"


def _spread(numbers: Numbers, axis: int, shape: torch.Size) -> Numbers:
    """Numbers of channels, for values of a shape with the channels on an axis, counted from the end."""
    return numbers.reshape(-1, *(1,) * (-axis - 1)).expand(shape)


def _all_fixed(result: Any) -> Any:
    """`FIXED` in the shape of each float tensor, None for all else."""
    return tree_map(lambda t: torch.tensor(FIXED).expand(t.shape) if is_float(t) else None, result)
