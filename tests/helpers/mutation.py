"""Values that were tampered with: a valid one with some part replaced, removed or added."""

from typing import Any

from hypothesis import strategies as st

KEYS = st.text(max_size=8)
NUMBERS = st.integers(-(2**70), 2**70) | st.floats()
ODD_TEXTS = st.sampled_from(
    ["../../etc/passwd", "/etc/passwd", "", ".", "\0", "null", "1e400", "s3://x", "a" * 5000]
)
JSON = st.recursive(
    st.none() | st.booleans() | NUMBERS | KEYS | ODD_TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=6,
)


@st.composite
def tampered(draw: st.DrawFn, value: Any) -> Any:
    """A JSON value of which one to three parts are others."""
    for _ in range(draw(st.integers(1, 3))):
        value = _changed(draw, value)
    return value


def _changed(draw: st.DrawFn, value: Any) -> Any:
    if isinstance(value, dict) and value and draw(st.integers(0, 9)):
        key = draw(st.sampled_from(sorted(value)))
        how = draw(st.integers(0, 9))
        if how == 0:
            return {k: v for k, v in value.items() if k != key}
        if how == 1:
            return value | {draw(KEYS): draw(JSON)}
        return value | {key: _changed(draw, value[key])}
    if isinstance(value, list) and value and draw(st.integers(0, 9)):
        at = draw(st.integers(0, len(value) - 1))
        how = draw(st.integers(0, 9))
        if how == 0:
            return value[:at] + value[at + 1 :]
        if how == 1:
            return [*value, value[at]]
        return [*value[:at], _changed(draw, value[at]), *value[at + 1 :]]
    return draw(JSON)


@st.composite
def spoiled(draw: st.DrawFn, content: bytes) -> bytes:
    """Bytes of which some are others, missing or repeated."""
    at = draw(st.integers(0, len(content)))
    until = draw(st.integers(at, min(len(content), at + 64)))
    return content[:at] + draw(st.binary(max_size=64)) + content[until:]
