import io
import zipfile

import numpy as np
import pytest

from unistep.arrays import ArrayError, open_arrays, read_array, read_header


def saved(array, **options) -> bytes:
    held = io.BytesIO()
    np.lib.format.write_array(held, array, **options)
    return held.getvalue()


@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
@pytest.mark.parametrize(
    "array",
    [
        np.arange(24, dtype=np.uint8).reshape(2, 3, 4),
        np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        np.array(3.5),
        np.zeros((0, 3), np.float32),
        np.array("text"),
        np.array([1 + 2j]),
        np.array([True, False]),
        np.arange(5, dtype=">i4"),
        np.float16([1, 2]),
    ],
)
def test_arrays_of_numpy(array, version):
    content = saved(array, version=version)
    found = read_array(io.BytesIO(content), len(content), 10_000)
    assert found.dtype == array.dtype and found.shape == array.shape and (found == array).all()
    header = read_header(io.BytesIO(content))
    assert header.fortran == (array.flags.f_contiguous and not array.flags.c_contiguous)
    assert header.num_bytes == len(content)


def with_header(text: str, version: bytes = b"\1\0") -> bytes:
    length = len(text).to_bytes(2 if version == b"\1\0" else 4, "little")
    return b"\x93NUMPY" + version + length + text.encode()


def described(descr="'|u1'", order="False", shape="(4,)") -> str:
    return f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}\n"


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x93NUMPY",
        b"\x93NUMPX\1\0" + b"\0" * 90,
        with_header(described(), b"\4\0"),
        with_header(described())[:-3],
        with_header("{'descr': '|u1', 'shape': (4,), 'fortran_order': False, 'x': '''\n"),
        with_header("{'descr': '|u1', 'shape': (4,\n"),
        with_header("(" * 9000),
        with_header(described(shape="(" * 4000 + ")" * 4000)),
        with_header(described(shape="(-4,)")),
        with_header(described(shape="(4.0,)")),
        with_header(described(shape=f"({'9' * 40},)")),
        with_header(described(shape="(" + "1," * 60 + ")")),
        with_header(described(shape="'4'")),
        with_header(described("'|O'")),
        with_header(described("[('a', '|u1')]")),
        with_header(described("'<q9'")),
        with_header(described("'|V4'")),
        with_header(described("'<f3'")),
        with_header(described("f4")),
        with_header(described("__import__('os').abort()")),
        with_header(described(order="1")),
        with_header(described() * 2),
        with_header(" " * 20_000 + described()),
        with_header(described(), b"\2\0").replace(len(described()).to_bytes(4, "little"), b"\xff\xff\xff\xff"),
    ],
)
def test_heads_that_are_none(content):
    with pytest.raises(ArrayError, match="^[^\n]*$"):
        read_header(io.BytesIO(content))


def test_sizes_that_lie(tmp_path):
    content = saved(np.zeros(100, np.uint8))
    for size in (len(content) - 1, len(content) + 1, 10**15):
        with pytest.raises(ArrayError, match="shape"):
            read_array(io.BytesIO(content), size, 10**18)
    with pytest.raises(ArrayError, match="make sense"):
        read_array(io.BytesIO(content), len(content), 100)
    with pytest.raises(ArrayError, match="early"):
        read_array(io.BytesIO(content[:-1]), len(content), 1000)
    huge = with_header(described(shape=f"({2**50},)"))
    with pytest.raises(ArrayError, match="make sense"):
        read_array(io.BytesIO(huge), len(huge) + 2**50, 1 << 30)


def test_archives(tmp_path):
    path = tmp_path / "a.npz"
    np.savez_compressed(path, a=np.arange(5), b=np.zeros((2, 2)))
    with open_arrays(path) as arrays:
        assert arrays.names == ["a", "b"]
        assert arrays.read("a", 1000).tolist() == [0, 1, 2, 3, 4]
        with pytest.raises(ArrayError, match="has no c"):
            arrays.read("c", 1000)
        with pytest.raises(ArrayError, match="b: .*make sense"):
            arrays.read("b", 100)
    whole = path.read_bytes()
    for damaged in (
        b"",
        whole[:50],
        whole[:-10],
        whole.replace(b"PK\1\2", b"PK\1\3"),
        whole[:60] + b"\xff" * 40 + whole[100:],
    ):
        path.write_bytes(damaged)
        with pytest.raises(ArrayError, match="^[^\n]*$"), open_arrays(path) as arrays:
            arrays.read("a", 1000)


def test_a_bomb_is_refused_by_its_size(tmp_path):
    path = tmp_path / "a.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("a.npy", "w") as member:
        member.write(with_header(described(shape=f"({50 << 20},)")))
        for _ in range(50):
            member.write(bytes(1 << 20))
    with pytest.raises(ArrayError, match="make sense"), open_arrays(path) as arrays:
        arrays.read("a", 1 << 20)
