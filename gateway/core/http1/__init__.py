"""HTTP/1.1 as this gateway speaks it: the grammar of RFC 9110 and 9112, strict, sans I/O.

`fields` classifies one field line, `head` reads request and response heads, `body` reads chunked bodies. Bytes in,
values out; what two implementations could read in two ways is refused, never repaired.
"""
