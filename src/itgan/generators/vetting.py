"""What a TorchScript file from anyone may hold, checked before any of it is run.

TorchScript has operators that read and write files, and loading an archive runs the method
``__setstate__`` of its modules. So an archive is vetted in two steps:

    screen            the archive itself: sums and sizes, known entries alone, nothing that runs
                      when it is loaded, tensors that lie within what is stored of them
    check_operators   every function of the loaded module, called or not: each operator must be on
                      a list of those that only compute
"""

import ast
import io
import pickle
import pickletools
import re
import zipfile
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

import torch

from itgan.errors import InputError

EXPANSION = 100 * 2**20  # bytes that compressed entries (code, mostly) may add
LONGEST_LOOP = 10_000
ENTRIES = re.compile(
    r"(data|constants)(/\d+|\.pkl)|code/[\w/]+\.py|version|byteorder|\.data/\w+|extra/itgan\.json"
)
# These run, or build objects of C++ classes, while an archive is loaded or a module called.
AT_LOADING = re.compile(
    rb"__setstate__|__getstate__|__forward_(pre_)?hooks__|torch\s*\.\s*classes"
)
COMPUTING = """
add sub rsub mul div true_divide floordiv floor_divide remainder fmod neg abs sign sqrt rsqrt
square pow exp exp2 expm1 log log1p log2 log10 sin cos tan asin acos atan atan2 sinh cosh tanh
sigmoid logit erf erfinv reciprocal floor ceil round trunc frac clamp clamp_min clamp_max minimum
maximum min max amin amax aminmax sum mean prod var std var_mean std_mean cumsum cumprod norm
linalg_vector_norm linalg_norm logsumexp softmax log_softmax argmax argmin sort topk
matmul mm bmm mv dot addmm addbmm baddbmm addcmul addcdiv einsum outer tensordot lerp where
linear bilinear conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d
convolution _convolution conv_tbc embedding one_hot
batch_norm native_batch_norm instance_norm group_norm layer_norm native_layer_norm rms_norm
dropout feature_dropout alpha_dropout cosine_similarity
relu relu6 leaky_relu elu selu celu gelu silu mish softplus hardtanh hardsigmoid hardswish
threshold prelu rrelu glu log_sigmoid scaled_dot_product_attention
_native_multi_head_attention _transformer_encoder_layer_fwd
max_pool1d max_pool2d max_pool3d avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d
adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool1d adaptive_max_pool2d
adaptive_max_pool3d
upsample_nearest1d upsample_nearest2d upsample_nearest3d _upsample_nearest_exact1d
_upsample_nearest_exact2d _upsample_nearest_exact3d upsample_linear1d upsample_bilinear2d
upsample_trilinear3d upsample_bicubic2d _upsample_bilinear2d_aa _upsample_bicubic2d_aa
_upsample_lanczos2d_aa grid_sampler affine_grid_generator pixel_shuffle pixel_unshuffle pad
constant_pad_nd reflection_pad1d reflection_pad2d replication_pad1d replication_pad2d
cat concat stack hstack vstack split split_with_sizes chunk unbind tensor_split select narrow slice
index index_select gather scatter masked_fill masked_select take index_put index_add
view view_as reshape reshape_as flatten unflatten squeeze unsqueeze permute transpose t numpy_T
movedim swapaxes swapdims expand expand_as repeat repeat_interleave tile roll flip rot90 tril triu
diag diagonal meshgrid contiguous clone detach to type_as
zeros ones full zeros_like ones_like full_like new_zeros new_ones new_full arange linspace eye
tensor scalar_tensor fill zero copy
eq ne lt le gt ge __and__ __or__ __xor__ __not__ __is__ __isnot__ __contains__ logical_and
logical_or logical_not bitwise_and bitwise_or bitwise_not any all isnan isfinite isinf
dim size numel len is_floating_point __getitem__ _set_item append extend insert pop keys values
items list dict get copy_ format str ord lower upper startswith endswith join replace
Int Float Bool IntImplicit FloatImplicit ScalarImplicit item warn get_device is_contiguous
is_grad_enabled is_autocast_enabled
"""
LANGUAGE = """
Constant GetAttr SetAttr If Loop ListConstruct ListUnpack TupleConstruct TupleUnpack TupleIndex
DictConstruct unchecked_cast unchecked_unwrap_optional Uninitialized RaiseException NumToTensor
CallFunction CallMethod isinstance dtype device layout is_cuda is_meta is_sparse requires_grad
shape data type min max abs TupleSlice is_nested
"""
OPERATORS = frozenset(
    [f"aten::{name}" for name in COMPUTING.split()]
    + [f"prim::{name}" for name in LANGUAGE.split()]
)


def screen(payload: bytes) -> bytes:
    """The archive written anew from the entries that a generator needs, after checking them.

    Raises:
        InputError: damaged, or with something that would run when it is loaded.
    """
    try:
        entries = _entries(payload)
        for name, content in entries.items():
            if name.endswith(".py"):
                _check_code(content)
            elif name.endswith(".pkl"):
                _check_pickle(name, content, entries)
    except (InputError, MemoryError):
        raise
    except pickle.UnpicklingError as error:
        raise InputError(f"a TorchScript file {error}; export the generator alone") from error
    except Exception as error:  # what a damaged archive raises has no common type
        raise InputError(
            "not a readable TorchScript file; export it again, without optimize_for_inference"
        ) from error
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        for name, content in entries.items():
            archive.writestr(zipfile.ZipInfo(f"archive/{name}"), content)
    return made.getvalue()


def _entries(payload: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(payload)) as archive:
        listing = archive.infolist()
        if sum(entry.file_size for entry in listing) > len(payload) + EXPANSION:
            raise InputError("a TorchScript file that expands to far more than its size")
        found = {}
        for entry in listing:
            name = entry.filename.partition("/")[2]
            if ENTRIES.fullmatch(name):
                if name in found:
                    raise InputError(f"a TorchScript file that holds {name} twice")
                found[name] = archive.read(entry)  # checks the sum
    return found


def _check_code(text: bytes) -> None:
    """Refuse what runs at loading; text that nests too deeply for any parser is no syntax here."""
    if found := AT_LOADING.search(text):
        raise InputError(
            f"a TorchScript file whose code has {found[0].decode()}, which would run while it is "
            "loaded or called; export the generator alone"
        )
    ast.parse(text)


class _Objects(pickle.Unpickler):
    """Walks through a pickle of TorchScript with stand-ins for its objects; nothing is run."""

    def __init__(self, name: str, content: bytes, entries: dict[str, bytes]) -> None:
        super().__init__(io.BytesIO(content))
        self.folder, self.entries = name.removesuffix(".pkl"), entries

    def find_class(self, module: str, name: str) -> Any:  # noqa: ANN401 - a stand-in
        if module.split(".")[0] == "__torch__":
            return _Stateful
        if module == "torch.jit._pickle":
            return _first
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _check_bounds
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if (module, name) == ("torch", "device"):
            return _first
        kind = getattr(torch, name, None) if module == "torch" else None
        if isinstance(kind, type) and name.endswith("Storage"):
            return getattr(kind, "dtype", torch.uint8)
        raise pickle.UnpicklingError(f"that holds a {module}.{name}")

    def persistent_load(self, pid: tuple) -> int:
        """How many numbers the storage has, after a look at what is stored of it."""
        _, dtype, key, _, count = pid
        if count < 0 or count * dtype.itemsize > len(self.entries[f"{self.folder}/{key}"]):
            raise pickle.UnpicklingError("whose tensors claim to be larger than what is stored")
        return count


class _Stateful:
    def __setstate__(self, state: object) -> None:
        """Drop it."""


def _first(*parts: object) -> object:
    return parts[0] if parts else None


def _check_bounds(count: int, offset: int, size: tuple, stride: tuple, *rest: object) -> None:
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    elements = 1
    for n in size:
        elements *= n
    negative = min((offset, *size, *stride)) < 0
    if negative or (elements and last >= count) or elements > max(count, 1):
        raise pickle.UnpicklingError("whose tensors claim to be larger than what is stored")


def _check_pickle(name: str, content: bytes, entries: dict[str, bytes]) -> None:
    for opcode, argument, _ in pickletools.genops(content):
        if "PUT" in opcode.name and int(argument or 0) > len(content):  # would fill the memory
            raise InputError(
                "not a readable TorchScript file; export it again, without optimize_for_inference"
            )
    _Objects(name, content, entries).load()


def load_vetted(
    payload: bytes, device: torch.device, extra: dict[str, Any]
) -> torch.jit.ScriptModule:
    """Load an archive of which nothing has run yet; ``extra`` takes entries as ``torch.jit.load``.

    Raises:
        InputError: damaged, or it could do more than compute.
    """
    archive = screen(payload)
    unit = torch._C.CompilationUnit()  # as torch.jit.load does, which does not give it away
    try:
        load: Any = torch._C.import_ir_module_from_buffer  # its stub is out of date
        loaded = load(unit, archive, device, extra, False)
        functions: Any = unit.get_functions()
        graphs = [function.graph for function in functions]  # compiles them
    except Exception as error:  # what a damaged archive raises has no common type
        raise InputError(
            "not a readable TorchScript file; export it again, without optimize_for_inference"
        ) from error
    for graph in graphs:
        check_operators(graph)
    return torch.jit._recursive.wrap_cpp_module(loaded)


def check_operators(graph: Any) -> None:  # noqa: ANN401 - of torch._C
    """Refuse a function with an operator that is not known to compute and nothing else.

    Raises:
        InputError: names the operator.
    """
    for node in _nodes(graph):
        kind = node.kind()
        if kind not in OPERATORS and kind.removesuffix("_") not in OPERATORS:
            raise InputError(
                f"a TorchScript file that uses the operator {kind}, which is not known to "
                "compute and nothing else; export the generator without it"
            )
        if kind == "prim::Loop":
            turns = next(iter(node.inputs())).toIValue()
            if turns is not None and turns > LONGEST_LOOP:
                raise InputError(
                    "a TorchScript file with a loop that may never end (while); export the "
                    "generator without it"
                )


def _nodes(graph: Any) -> Iterator[Any]:  # noqa: ANN401 - of torch._C
    blocks = [graph]
    while blocks:
        for node in blocks.pop().nodes():
            yield node
            blocks += node.blocks()
