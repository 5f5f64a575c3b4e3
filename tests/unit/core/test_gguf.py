"""The reader of GGUF heads against the official library, on files of many shapes, whole and split."""

import gguf
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama_orch.core.ggml import FILE_TYPES, TENSOR_TYPES, row_bytes
from llama_orch.core.gguf import GgufError, parts_of, read_head, read_model

from ...engines.gguf_bytes import array, entry, file_of, scalar, string, tensor
from ...engines.tiny_gguf import Shape, write_model


def told_by_the_library(path):
    reader = gguf.GGUFReader(path)
    own = {"GGUF.version", "GGUF.tensor_count", "GGUF.kv_count"}
    fields = {key: field for key, field in reader.fields.items() if key not in own}
    arrays = {
        key: tuple(field.contents()) for key, field in fields.items() if field.types[0] == gguf.GGUFValueType.ARRAY
    }
    tensors = {
        one.name: (tuple(int(n) for n in one.shape), int(one.tensor_type), int(one.data_offset), int(one.n_bytes))
        for one in reader.tensors
    }
    return {key: field.contents() for key, field in fields.items() if key not in arrays}, arrays, tensors


def told_here(path):
    head = read_head(path, keep=("",))
    return head.metadata, head.arrays, {t.name: (t.dims, t.type, t.offset, t.size_bytes) for t in head.tensors}


@pytest.mark.parametrize("shape", [Shape(), Shape(width=96, heads=3, kv_heads=1, layers=5, words=900), Shape(layers=1)])
def test_a_models_head_reads_as_the_official_library_reads_it(shape, tmp_path):
    path = write_model(tmp_path / "m.gguf", shape)
    assert told_here(path) == told_by_the_library(path)


SCALARS = {
    "add_uint8": st.integers(0, 2**8 - 1),
    "add_int8": st.integers(-(2**7), 2**7 - 1),
    "add_uint16": st.integers(0, 2**16 - 1),
    "add_int16": st.integers(-(2**15), 2**15 - 1),
    "add_uint32": st.integers(0, 2**32 - 1),
    "add_int32": st.integers(-(2**31), 2**31 - 1),
    "add_uint64": st.integers(0, 2**64 - 1),
    "add_int64": st.integers(-(2**63), 2**63 - 1),
    "add_float32": st.floats(width=32, allow_nan=False),
    "add_float64": st.floats(allow_nan=False),
    "add_bool": st.booleans(),
    "add_string": st.text(st.characters(codec="utf-8"), min_size=1, max_size=50),
    "add_array": st.lists(st.integers(-(2**31), 2**31 - 1), min_size=1, max_size=9)
    | st.lists(st.text(st.characters(codec="utf-8"), max_size=9), min_size=1, max_size=9)
    | st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=9),
}


@given(
    values=st.lists(
        st.sampled_from(sorted(SCALARS)).flatmap(lambda name: st.tuples(st.just(name), SCALARS[name])), max_size=12
    ),
    tensors=st.lists(
        st.tuples(
            st.sampled_from(sorted(number for number, (_, block, _) in TENSOR_TYPES.items() if block > 1)),
            st.integers(1, 3),
            st.integers(1, 5),
        ),
        max_size=6,
    ),
    alignment=st.sampled_from([None, 32, 64, 256]),
)
def test_any_file_of_the_official_writer_reads_as_the_official_library_reads_it(
    tmp_path_factory, values, tensors, alignment
):
    path = tmp_path_factory.getbasetemp() / "any.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    if alignment is not None:
        writer.add_custom_alignment(alignment)
    for n, (method, value) in enumerate(values):
        getattr(writer, method)(f"key.{n}", value)
    for n, (kind, blocks, rows) in enumerate(tensors):
        raw = np.full((rows, blocks * TENSOR_TYPES[kind][2]), n, np.uint8)
        writer.add_tensor(f"t{n}", raw, raw_dtype=gguf.GGMLQuantizationType(kind))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert told_here(path) == told_by_the_library(path)


def test_sizes_and_names_of_types_are_those_of_the_official_library():
    sizes = {int(kind): (kind.name, *size) for kind, size in gguf.GGML_QUANT_SIZES.items()}
    assert sizes == TENSOR_TYPES
    names = {int(kind): kind.name.removeprefix("MOSTLY_").removeprefix("ALL_") for kind in gguf.LlamaFileType}
    assert names == {**FILE_TYPES, 1024: "GUESSED"}


def test_a_row_takes_whole_blocks():
    assert (row_bytes("f16", 7), row_bytes("q8_0", 64), row_bytes("q4_0", 33)) == (14, 68, 36)
    with pytest.raises(ValueError, match="q9"):
        row_bytes("q9", 1)


def test_version_2_is_read_as_3_is(tmp_path):
    for version in (2, 3):
        (tmp_path / "m.gguf").write_bytes(
            file_of([entry("general.name", string("x"))], [tensor("t", (3,), 0, 0)], version=version, data=12)
        )
        head = read_head(tmp_path / "m.gguf")
        assert (head.version, head.metadata, head.weights_bytes) == (version, {"general.name": "x"}, 12)


def test_a_type_that_is_not_known_takes_the_room_up_to_the_next_tensor(tmp_path):
    tensors = [tensor("new", (64, 2), 99, 0), tensor("t", (3,), 0, 96), tensor("newer", (64,), 100, 128)]
    (tmp_path / "m.gguf").write_bytes(file_of([], tensors, data=150))
    head = read_head(tmp_path / "m.gguf")
    assert [one.size_bytes for one in head.tensors] == [96, 12, 22]
    assert head.quantization == "type-99"


def test_the_quantization_is_named_by_the_file_or_by_most_of_its_bytes(tmp_path):
    tensors = [tensor("a", (32, 4), 8, 0), tensor("b", (32,), 0, 160)]
    for entries, name in (([entry("general.file_type", scalar("I", 15))], "Q4_K_M"), ([], "Q8_0")):
        (tmp_path / "m.gguf").write_bytes(file_of(entries, tensors, data=288))
        assert read_head(tmp_path / "m.gguf").quantization == name


def test_arrays_are_skipped_unless_their_key_is_asked_for(tmp_path):
    (tmp_path / "m.gguf").write_bytes(
        file_of(
            [entry("llama.attention.head_count_kv", array("i", [1, 2])), entry("a.b", array("s", ["x", "y", "z"]))], []
        )
    )
    assert read_head(tmp_path / "m.gguf").arrays == {"llama.attention.head_count_kv": (1, 2)}
    assert read_head(tmp_path / "m.gguf").lengths == {"llama.attention.head_count_kv": 2, "a.b": 3}
    assert read_head(tmp_path / "m.gguf", keep=("a.b",)).arrays == {"a.b": ("x", "y", "z")}
    assert read_head(tmp_path / "m.gguf", keep=()).arrays == {}


def split(folder, count=3, *, told=None, tensors=None, names=None):
    """A model in parts of one tensor each, and the paths of the parts."""
    paths = []
    for n in range(count):
        entries = [entry("split.no", scalar("H", n)), entry("split.count", scalar("H", told or count))]
        if n == 0:
            entries += [entry("general.architecture", string("llama")), entry("llama.context_length", scalar("I", 99))]
            entries += [entry("split.tensors.count", scalar("i", tensors or count))]
        name = names[n] if names else f"t{n}"
        path = folder / f"m-{n + 1:05}-of-{count:05}.gguf"
        path.write_bytes(file_of(entries, [tensor(name, (8,), 0, 0)], data=32))
        paths.append(path)
    return paths


def test_a_split_model_is_read_whole_by_the_name_of_any_part(tmp_path):
    paths = split(tmp_path)
    for path in paths:
        assert parts_of(path) == tuple(paths)
        head = read_model(path)
        assert [one.name for one in head.tensors] == ["t0", "t1", "t2"]
        assert head.context_length == 99
        assert head.file_bytes == sum(one.stat().st_size for one in paths)
    assert read_model(write_model(tmp_path / "whole.gguf")) == read_head(tmp_path / "whole.gguf")


def test_a_split_model_with_a_part_that_is_missing_or_of_another_model_is_refused(tmp_path):
    for what, change in {
        "is missing": lambda paths: paths[1].unlink(),
        "its name says otherwise": lambda paths: paths[1].write_bytes(paths[2].read_bytes()),
        "in more than one part": lambda paths: split(tmp_path, names=["a", "b", "a"]),
        "hold 3 tensors together, it says 4": lambda paths: split(tmp_path, tensors=4),
        "cut off": lambda paths: paths[2].write_bytes(paths[2].read_bytes()[:-1]),
    }.items():
        paths = split(tmp_path)
        change(paths)
        with pytest.raises(GgufError, match=what):
            read_model(paths[0])


def test_a_part_under_another_name_says_how_parts_are_found(tmp_path):
    split(tmp_path)[0].rename(tmp_path / "renamed.gguf")
    with pytest.raises(GgufError, match="-00001-of-00003"):
        read_model(tmp_path / "renamed.gguf")
    for name in ("m-00004-of-00003.gguf", "m-00000-of-00003.gguf", "m-00001-of-99999.gguf"):
        with pytest.raises(GgufError, match="cannot be"):
            parts_of(tmp_path / name)
