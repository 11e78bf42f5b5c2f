"""Paths that no manifest may name: outside, absolute, devices, or other names elsewhere."""

HOSTILE = (
    "", ".", "..", "/", "/etc/passwd", "../../etc/passwd", "a/../../b", "a/..", "./a", "a//b", "a/",
    "a/./b", "..\\..\\secret", "a\\b", "C:", "C:\\secret", "C:secret", "file:///etc/passwd",
    "//server/share", "\\\\server\\share", "a\0b", "a\nb", "\x7f", "con", "NUL", "nul.onnx", "COM1",
    "a/lpt9.bin", "aux .txt", "name.", "name ", "a*", "a?", "<a>", "a|b", 'a"b',
)  # fmt: skip
