"""The compiled kernel against its formula in float64, as each kind of processor that this one can stand for."""

from __future__ import annotations

import math
import os
import shutil
import sys
from functools import cache

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from captum_attn_lime.attention import ScoreMap, native
from captum_attn_lime.errors import CompilerError, InputError

_CAPABILITIES = ("DEFAULT", "AVX2", "AVX512")
_COMPILER = os.environ.get("CXX") or next(filter(shutil.which, ("c++", "g++", "clang++")), None)
needs_compiler = pytest.mark.skipif(_COMPILER is None, reason="no C++ compiler on this machine")


def _at_most_here() -> tuple[str, ...]:
    """The capabilities whose instructions this processor has."""
    here = torch.backends.cpu.get_cpu_capability()
    return _CAPABILITIES[: _CAPABILITIES.index(here) + 1] if here in _CAPABILITIES else (here,)


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """A folder to compile into, once for each capability."""
    return tmp_path_factory.mktemp("extensions")


@pytest.fixture(scope="module", params=_at_most_here())
def kernel(request, compiled):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCH_EXTENSIONS_DIR", str(compiled))
        patch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: request.param)
        native.enable()
    yield native.column_sums
    native.disable()


@pytest.fixture
def extensions(tmp_path, monkeypatch):
    """An empty folder for compiled files, and no kernel in use."""
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    native.disable()
    yield tmp_path
    native.disable()


def _weights(query, key, logs, bias, scale, is_causal, window=None):
    """All terms of the sums in float64, (B, H, Q, K)."""
    key = key.repeat_interleave(query.shape[1] // key.shape[1], dim=1)
    exponents = query.double() @ key.double().mT * scale + logs.double()[..., None]
    if bias is not None:
        exponents = exponents + bias.double()[:, :, None]
    distance = torch.arange(query.shape[2])[:, None] - torch.arange(key.shape[2])
    if is_causal:
        exponents = exponents.masked_fill(distance < 0, -torch.inf)
    if window is not None:
        exponents = exponents.masked_fill(distance >= window, -torch.inf)
    return exponents.exp()


def _expected(*args):
    return _weights(*args).sum(dim=2).mean(dim=1)


def _logs(query, key, bias, scale, is_causal, window=None):
    """log r - lse for random r, with rows that count nothing."""
    none = torch.zeros(query.shape[:3])
    sums = _weights(query, key, none, bias, scale, is_causal, window).sum(dim=-1)
    logs = torch.where(sums > 0, (torch.rand(query.shape[0], 1, query.shape[2]) / sums).log(), -1e30)
    return torch.where(torch.rand(query.shape[2]) < 0.2, -1e30, logs).float()


def _close(got, expected):
    # Rounding leaves about 1e-7 of a score in its weight, and the scores here are below 40.
    assert got.shape == expected.shape
    assert got.dtype == torch.float32
    torch.testing.assert_close(got.double(), expected, rtol=1e-5, atol=1e-30)


cases = given(
    seed=st.integers(0, 10_000),
    batch=st.integers(1, 2),
    key_heads=st.integers(1, 3),
    group=st.integers(1, 3),
    queries=st.integers(1, 150),
    keys=st.integers(1, 150),
    size=st.integers(1, 40),
    mask=st.sampled_from(["none", "shared", "by example", "by head", "all"]),
    order=st.sampled_from(["bidirectional", "causal", "window", "causal window"]),
    layout=st.sampled_from(["(B, H, N, d)", "(B, N, H d)", "every second"]),
)


@needs_compiler
@cases
def test_sums_are_those_of_the_formula(kernel, seed, batch, key_heads, group, queries, keys, size, mask, order, layout):
    torch.manual_seed(seed)
    is_causal = "causal" in order
    window = int(torch.randint(1, 60, ())) if "window" in order else None
    keys = queries if is_causal else keys

    def tensor(heads, tokens):
        if layout == "(B, H, N, d)":
            return torch.randn(batch, heads, tokens, size) * 2
        if layout == "(B, N, H d)":
            return torch.randn(batch, tokens, heads, size).transpose(1, 2) * 2
        return torch.randn(batch, heads, tokens, 2 * size)[..., ::2] * 2

    query, key = tensor(key_heads * group, queries), tensor(key_heads, keys)
    bias = None
    if mask != "none":
        bias = torch.randn(batch if mask != "shared" else 1, key_heads * group if mask == "by head" else 1, keys) * 3
        bias = bias.masked_fill(torch.rand_like(bias) < (1.0 if mask == "all" else 0.3), -torch.inf)
    scale = 1 / math.sqrt(size)
    logs = _logs(query, key, bias, scale, is_causal, window)
    got = kernel(query, key, logs, bias, scale=scale, is_causal=is_causal, window=window)
    _close(got, _expected(query, key, logs, bias, scale, is_causal, window))


@cache
def _thousands(is_causal):
    """Query, key and logs of 4,096 tokens, and the sums in float64: they add up to 1."""
    n = 4096
    query, key = torch.randn(2, 1, 1, n, 32, generator=torch.Generator().manual_seed(0))
    weights = _weights(query, key, torch.zeros(1, 1, n), None, 0.2, is_causal)
    logs = (weights.sum(dim=-1).log().neg() - math.log(n)).float()
    return query, key, logs, (weights * logs.double().exp()[..., None]).sum(dim=2).mean(dim=1)


@needs_compiler
@pytest.mark.parametrize("is_causal", [False, True])
def test_sums_over_thousands_of_queries_stay_exact(kernel, is_causal):
    query, key, logs, expected = _thousands(is_causal)
    got = kernel(query, key, logs, None, scale=0.2, is_causal=is_causal)
    assert float(expected.sum()) == pytest.approx(1, abs=1e-5)
    assert float((got - expected).abs().sum()) < 2e-7  # a few roundings of float32


@needs_compiler
def test_exponents_over_the_whole_range(kernel):
    # One query of zeros: the sums are the exponentials of the biases, alone and with another term beside them.
    exponents = torch.linspace(-86, 88, 20_001)
    query, key = torch.zeros(1, 1, 1, 1), torch.zeros(1, 1, len(exponents), 1)
    got = kernel(query, key, torch.zeros(1, 1, 1), exponents[None, None], scale=1.0, is_causal=False)
    relative = got[0].double() / exponents.double().exp() - 1
    # Multiplying an exponent of 88 by log2(e) rounds by 4e-6 of the result; near 0 only the polynomial is left.
    assert float(relative.abs().max()) < 1e-5
    assert float(relative[exponents.abs() < 1].abs().max()) < 3e-7


@needs_compiler
def test_ends_of_the_range(kernel):
    far = torch.tensor([-87.5, -1e4, -3e38, -torch.inf, 89.0, 1e4, 0.0])
    query, key = torch.zeros(1, 1, 1, 1), torch.zeros(1, 1, len(far), 1)
    got = kernel(query, key, torch.zeros(1, 1, 1), far[None, None], scale=1.0, is_causal=False)[0]
    assert got[:4].tolist() == [0, 0, 0, 0]
    assert not bool((got[4:6] < 1e38).any())  # too large: whatever says so, but no plausible number
    assert got[6] == 1


@needs_compiler
def test_rows_that_count_nothing_are_not_read(kernel):
    query, key = torch.randn(1, 2, 9, 4), torch.randn(1, 2, 5, 4)
    logs = torch.full((1, 2, 9), -3.0)
    logs[:, :, [0, 4]] = torch.tensor([-1e30, -torch.inf])
    kept = [1, 2, 3, 5, 6, 7, 8]
    expected = _expected(query[:, :, kept], key, logs[:, :, kept], None, 1.0, False)
    query[:, :, [0, 4]] = torch.nan
    _close(kernel(query, key, logs, None, scale=1.0, is_causal=False), expected)
    query[:, :, 1] = torch.nan  # but a number that is none in a row that counts is not hidden
    assert kernel(query, key, logs, None, scale=1.0, is_causal=False).isnan().all()


@needs_compiler
@pytest.mark.parametrize("is_causal", [False, True])
def test_threads_change_nothing(kernel, is_causal):
    # More keys than one task takes, and a head and a chunk of keys left over for some thread.
    query, key = torch.randn(1, 3, 2500, 8), torch.randn(1, 3, 2500, 8)
    logs = torch.full((1, 3, 2500), -8.0)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3, 7):
            torch.set_num_threads(threads)
            results.append(kernel(query, key, logs, None, scale=0.3, is_causal=is_causal))
    finally:
        torch.set_num_threads(before)
    _close(results[0], _expected(query, key, logs, None, 0.3, is_causal))
    for other in results[1:]:
        assert torch.equal(results[0], other)


@needs_compiler
def test_no_queries_no_sums(kernel):
    empty = torch.zeros(2, 3, 0, 4), torch.zeros(2, 3, 5, 4), torch.zeros(2, 3, 0)
    assert torch.equal(kernel(*empty, None, scale=1.0, is_causal=False), torch.zeros(2, 5))


@needs_compiler
@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_a_map_gives_the_same_product(kernel, monkeypatch, is_causal, masked):
    called = []
    monkeypatch.setattr(native, "column_sums", lambda *args, **kwargs: called.append(1) or kernel(*args, **kwargs))
    query, key = torch.randn(2, 70, 6, 8).transpose(1, 2), torch.randn(2, 70, 2, 8).transpose(1, 2)
    masks = [torch.arange(70)[None, None, None] < torch.tensor([70, 41])[:, None, None, None]] if masked else []
    attention = ScoreMap(query, key, masks=masks, is_causal=is_causal)
    r = torch.rand(2, 70)
    expected = torch.einsum("bi,bij->bj", r.double(), attention.dense().double().mean(dim=1))
    torch.testing.assert_close(attention.vecmat(r).double(), expected, rtol=1e-5, atol=1e-6)
    assert called


@needs_compiler
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(query=torch.zeros(1, 4, 6, 8, dtype=torch.float64)), "query is torch.float64"),
        (dict(key=torch.zeros(1, 2, 5, 8, device="meta")), "key is torch.float32 on meta"),
        (dict(key=torch.zeros(1, 3, 5, 8)), "Hk dividing H"),
        (dict(key=torch.zeros(1, 2, 5, 7)), r"\(1, 2, 5, 7\)"),
        (dict(key=torch.zeros(2, 2, 5, 8)), r"\(2, 2, 5, 8\)"),
        (dict(logs=torch.zeros(1, 4, 5)), r"\(1, 4, 5\)"),
        (dict(logs=torch.zeros(4, 6)), r"\(4, 6\)"),
        (dict(bias=torch.zeros(1, 4, 6)), r"\(1, 4, 6\)"),
        (dict(bias=torch.zeros(1, 2, 5)), r"\(1, 2, 5\)"),
        (dict(bias=torch.zeros(1, 4, 1, 5)), r"\(1, 4, 1, 5\)"),
        (dict(is_causal=True), "as many queries as keys"),
        (dict(window=0), "at least one token"),
    ],
)
def test_what_it_would_read_wrongly_is_refused(kernel, change, message):
    given = dict(
        query=torch.zeros(1, 4, 6, 8),
        key=torch.zeros(1, 2, 5, 8),
        logs=torch.zeros(1, 4, 6),
        bias=None,
        scale=1.0,
        is_causal=False,
    )
    kernel(**given)
    with pytest.raises(InputError, match=message):
        kernel(**{**given, **change})


# Building and loading.


def _works() -> bool:
    ones = torch.ones(1, 1, 2, 1)
    sums = native.column_sums(ones, ones, torch.zeros(1, 1, 2), None, scale=1.0, is_causal=False)
    return bool(torch.allclose(sums, torch.full((1, 2), 2 * math.e)))


@needs_compiler
def test_compiled_once_and_kept(extensions, monkeypatch):
    assert not native.is_enabled()
    native.enable()
    assert native.is_enabled()
    assert _works()
    (kept,) = (extensions / "captum_attn_lime").iterdir()
    native.disable()
    assert not native.is_enabled()
    # The file serves without a compiler.
    monkeypatch.setenv("CXX", "no-such-compiler")
    native.enable()
    assert _works()
    # A file that cannot be loaded is compiled again: here by copying the good one, which is quicker.
    native.disable()
    script = extensions / "copy.py"
    script.write_text(f"import shutil, sys; shutil.copy({str(kept)!r}, sys.argv[sys.argv.index('-o') + 1])")
    monkeypatch.setenv("CXX", f"{sys.executable} {script}")
    broken = extensions / "other" / "captum_attn_lime" / kept.name
    broken.parent.mkdir(parents=True)
    broken.write_bytes(b"not a library")
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(extensions / "other"))
    native.enable()
    assert _works()
    assert broken.read_bytes() == kept.read_bytes()
    # Where nothing can be kept, it works all the same.
    native.disable()
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(script))
    native.enable()
    assert _works()


def test_without_a_compiler_the_error_says_what_to_install(extensions, monkeypatch):
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(extensions))
    with pytest.raises(CompilerError, match=r"none of \['c\+\+', 'g\+\+', 'clang\+\+'\] .* Install GCC"):
        native.enable()
    assert not native.is_enabled()
    monkeypatch.setenv("CXX", "no-such-compiler -v")
    with pytest.raises(CompilerError, match="no-such-compiler"):
        native.enable()


def test_a_compiler_that_fails_is_quoted(extensions, monkeypatch):
    script = extensions / "fail.py"
    script.write_text("import sys; sys.exit('a word it does not know')")
    monkeypatch.setenv("CXX", f"{sys.executable} {script}")
    with pytest.raises(CompilerError, match=r"(?s)exit code 1; .*a word it does not know"):
        native.enable()
    script.write_text("import sys; open(sys.argv[sys.argv.index('-o') + 1], 'w').write('no library')")
    with pytest.raises(CompilerError, match="cannot be loaded"):
        native.enable()
    assert not native.is_enabled()


def test_not_enabled(extensions):
    ones = torch.ones(1, 1, 2, 1)
    with pytest.raises(CompilerError, match="enable"):
        native.column_sums(ones, ones, torch.zeros(1, 1, 2), None, scale=1.0, is_causal=False)
